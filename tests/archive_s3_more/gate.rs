use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What is answered in the server's place to a request with this head: a status line and a body.
type Instead = Box<dyn Fn(&str) -> Option<(&'static str, &'static str)> + Send + Sync>;

/// Stands before an S3 server, one request to a connection, hears every request, and answers some in its place.
pub(crate) struct Gate {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    instead: Instead,
    heads: Mutex<Vec<String>>,
}

impl Gate {
    pub(crate) fn before(
        server: u16,
        instead: impl Fn(&str) -> Option<(&'static str, &'static str)> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { server, instead: Box::new(instead), heads: Mutex::default() });
        let weak = Arc::downgrade(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Some(shared) = weak.upgrade() else { return };
                thread::spawn(move || shared.serve(&client));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The heads of all requests so far, in small letters but for their first line.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().expect("no thread panics").clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.heads.lock().expect("no thread panics").clear();
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) {
        let mut asking = BufReader::new(client);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match asking.read_line(&mut line) {
                Ok(1..) if line.trim_end().is_empty() => break,
                Ok(1..) => lines.push(line.trim_end().to_owned()),
                _ => return,
            }
        }
        let Some((first, rest)) = lines.split_first() else { return };
        let head = format!("{first}\n{}", rest.join("\n").to_lowercase());
        self.heads.lock().expect("no thread panics").push(head.clone());
        let length =
            rest.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = asking.by_ref().take(length.unwrap_or(0));
        if let Some((status, text)) = (self.instead)(&head) {
            let _ = std::io::copy(&mut body, &mut std::io::sink());
            let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
            let text = if first.starts_with("HEAD ") { "" } else { text };
            let _ = (&mut &*client).write_all((answer + text).as_bytes());
            return;
        }
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        let kept = rest.iter().filter(|line| !line.to_lowercase().starts_with("connection:"));
        let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
        let _ = server.write_all(format!("{first}\r\n{kept}Connection: close\r\n\r\n").as_bytes());
        let _ = std::io::copy(&mut body, &mut server);
        let _ = std::io::copy(&mut server, &mut &*client);
        let _ = client.shutdown(Shutdown::Both);
    }
}
