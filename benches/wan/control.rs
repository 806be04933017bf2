//! The socket through which a running link is changed: one line in, one line of JSON out.

use std::{
    error::Error,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use clap::Args;

const LIMIT: Duration = Duration::from_secs(10);

/// One request: the change as it was written, and where the answer goes.
pub(crate) type Request = (String, Sender<String>);

#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// The path that was given to --control.
    socket: PathBuf,
    /// Such as `rate=200mbit`, `ab.loss=1%`, `down`, `up`. Without it only the counters are printed.
    #[arg(default_value = "")]
    change: String,
}

pub(crate) fn main(args: &SetArgs) -> Result<u8, Box<dyn Error>> {
    let mut stream = UnixStream::connect(&args.socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    writeln!(stream, "{}", args.change)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    print!("{answer}");
    Ok(u8::from(answer.starts_with("{\"error\"")))
}

/// The listening socket; its path goes with the value.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    pub(crate) requests: Receiver<Request>,
}

impl Control {
    pub(crate) fn listen(path: &Path) -> Result<Self, Box<dyn Error>> {
        let listener = UnixListener::bind(path)?;
        let (sender, requests) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One that says nothing holds up the others for a while at most.
                let _ = stream.set_read_timeout(Some(LIMIT));
                if answer(stream, &sender).is_none() {
                    return;
                }
            }
        });
        Ok(Self { path: path.to_owned(), requests })
    }
}

/// None once nobody takes requests any more.
fn answer(stream: UnixStream, requests: &Sender<Request>) -> Option<()> {
    let mut lines = BufReader::new(&stream);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
        let (reply, replies) = channel();
        requests.send((line.trim().to_owned(), reply)).ok()?;
        let said = replies.recv_timeout(LIMIT).unwrap_or_else(|_| "{\"error\":\"the run is over\"}".to_owned());
        if writeln!(&stream, "{said}").is_err() {
            break;
        }
        line.clear();
    }
    Some(())
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
