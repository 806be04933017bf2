//! The program as a user meets it: words in, exit code and text out. No peer is needed here.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// The program with nothing of this machine's own settings.
fn ccat(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ccat-xfer"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CCAT_XFER_")) {
            command.env_remove(name);
        }
    }
    command.args(args).env("HOME", home).env_remove("XDG_CONFIG_HOME");
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    ccat(home, args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Each is refused before anything is touched, says why on stderr, and exits 2.
#[test]
fn commands_that_make_no_sense() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a"), b"a").unwrap();
    let a = home.path().join("a");
    let a = a.to_str().unwrap();
    for (args, says) in [
        (&["send", "-oProxyCommand=touch /tmp/owned:x", "h:d"][..], "unexpected argument"),
        (&["send", "--", "-oProxyCommand=x:p", "h:d"], "must not begin with '-'"),
        (&["send", a, "-oProxyCommand=x:p"], "unexpected argument"),
        (&["send", "--", a, "-oProxyCommand=x:p"], "must not begin with '-'"),
        (&["send", "--", a, "-u@h:p"], "must not begin with '-'"),
        (&["send", "--", a, "u@-h:p"], "must not begin with '-'"),
        (&["recv", "--", "u@-oX:p", "."], "must not begin with '-'"),
        (&["send", a, "xfer://-h/loc/p"], "must not begin with '-'"),
        (&["send", "g:a", "h:b"], "two remote ends"),
        (&["recv", "g:a", "h:b"], "two remote ends"),
        (&["send", "xfer://g/l/a", "h:b"], "two remote ends"),
        (&["send", a, "b"], "no remote end"),
        (&["send", "g:a", "b"], "use recv"),
        (&["recv", a, "g:b"], "use send"),
        (&["recv", "g:a", "h:b", "d"], "not all at one remote end"),
        (&["send", a, "h::module"], "rsync's daemons"),
        (&["send", a, "xfer://h"], "location is missing"),
        (&["send", a, "xfer://h/loc/../../etc"], "'..'"),
        (&["send", a, "h;id:d"], "not a host"),
        (&["send", ""], "required"),
        (&["send", "", "h:d"], "empty path"),
        (&["send", "h:d"], "2 values required"),
        (&["send"], "required"),
        (&["send", "--frobnicate", a, "h:d"], "unexpected argument"),
        (&["send", "--transport", "pigeon", a, "h:d"], "not a transport"),
        (&["send", "--rate-limit", "fast", a, "h:d"], "not a rate"),
        (&["send", "--chunk-size", "5Mi", a, "h:d"], "not a power of two"),
        (&["send", "--streams", "0", a, "h:d"], "number from 1"),
        (&["send", "--rsh", "", a, "h:d"], "remote shell is empty"),
        (&["send", "--reverse", a, "xfer://h/l"], "--reverse needs"),
        (&["send", "--transport", "ssh", a, "xfer://h/l"], "--transport ssh needs"),
        (&["send", "--log", "=", a, "h:d"], "not a log filter"),
        (&["send", "--config", "/nonexistent.toml", a, "h:d"], "/nonexistent.toml"),
        (&["send", "--peer-fingerprint", "00", a, "h:d"], "names an endpoint"),
        (&["verify", "x"], "--manifest"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["--stdio", "send", a, "h:d"], "--stdio takes no command"),
        (&["--verbose"], "a command is needed"),
    ] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_success() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["send", "--help"], &["help", "cert"], &["--version"]] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(run(home.path(), &[]).status.code(), Some(2));
}

/// With `--json` an early end is told as the last line too, and stdout holds nothing else.
#[test]
fn usage_errors_speak_json() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["send", "--json", "g:a", "h:b"]);
    assert_eq!(output.status.code(), Some(2));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema"], 1);
    assert_eq!(value["event"], "summary");
    assert_eq!(value["exit"], "usage");
    assert_eq!(value["exit_code"], 2);
    assert!(value["text"].as_str().unwrap().contains("two remote ends"));
}

#[test]
fn settings_come_from_file_environment_and_flags() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/ccat-xfer");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.toml"), "streams = 4\nrate_limit = \"1G\"\n").unwrap();
    let output = ccat(home.path(), &["send", "--show-config", "--rate-limit", "3G"])
        .env("CCAT_XFER_STREAMS", "8")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let line = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(&format!("{key} = "))).unwrap();
        line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("streams"), "\"8\" # environment CCAT_XFER_STREAMS");
    assert_eq!(line("rate_limit"), "\"3G\" # flag --rate-limit");
    assert_eq!(line("transport"), "\"auto\" # default");
    assert_eq!(line("identity"), format!("\"{}\" # default", folder.display()));
    // Without the flag the file's value holds, and says so.
    let text = stdout(&run(home.path(), &["--show-config"]));
    assert!(text.contains(&format!("# file {}", folder.join("config.toml").display())));

    fs::write(folder.join("config.toml"), "rate-limit = \"1G\"\n").unwrap();
    let output = run(home.path(), &["--show-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no setting 'rate-limit'; did you mean 'rate_limit'?"), "{}", stderr(&output));
}

#[test]
fn verify_tells_different_from_missing() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("one"), b"one").unwrap();
    fs::write(data.join("new\nline"), b"two").unwrap();
    let list = home.path().join("list");
    // Digests as b3sum prints them.
    let one = "d33fb48ab5adff269ae172b29a6913ff04f6f266207a7a8e976f2ecd571d4492";
    let two = blake3_hex(b"two");
    assert_eq!(blake3_hex(b"one"), one);
    fs::write(&list, format!("{one}  one\n\\{two}  new\\nline\n")).unwrap();
    let verify = |args: &[&str]| {
        let mut all = vec!["verify", "--manifest", list.to_str().unwrap(), data.to_str().unwrap()];
        all.extend(args);
        run(home.path(), &all)
    };
    let output = verify(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("2 files are right"));
    fs::write(data.join("one"), b"One").unwrap();
    let output = verify(&["--json"]);
    assert_eq!(output.status.code(), Some(5));
    let lines: Vec<serde_json::Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().any(|l| l["path"] == "one" && l["action"] == "failed" && l["class"] == "integrity"));
    assert!(lines.iter().any(|l| l["path"] == "new\nline" && l["action"] == "verified" && l["digest"] == two.as_str()));
    assert_eq!(lines[2]["event"], "summary");
    assert_eq!((&lines[2]["exit_code"], &lines[2]["different"]), (&5.into(), &1.into()));
    fs::remove_file(data.join("one")).unwrap();
    let output = verify(&[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("is missing"));
    fs::write(&list, "nonsense\n").unwrap();
    assert_eq!(verify(&[]).status.code(), Some(5));
    fs::remove_file(&list).unwrap();
    assert_eq!(verify(&[]).status.code(), Some(3));
}

fn blake3_hex(bytes: &[u8]) -> String {
    ccat_xfer::chunk::Digest::of(bytes).to_string()
}

#[test]
fn peers_are_trusted_by_name() {
    let home = tempfile::tempdir().unwrap();
    let fingerprint = format!("sha256:{}", "ab".repeat(32));
    let trust = |peer: &str, name: &str| run(home.path(), &["cert", "trust", peer, name]);
    let output = trust(&fingerprint, "cologne");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let file = fs::read_to_string(home.path().join(".config/ccat-xfer/trusted")).unwrap();
    assert!(file.ends_with(&format!("{fingerprint} cologne\n")), "{file}");
    assert!(stdout(&trust(&"ab".repeat(32), "cologne")).contains("already"));
    let output = trust(&fingerprint, "chile");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("as 'cologne'"));
    assert_eq!(trust("xyz", "chile").status.code(), Some(2));
    assert!(stdout(&run(home.path(), &["cert", "show"])).contains(&format!("  {fingerprint} cologne\n")));
    let mut nowhere = ccat(home.path(), &["cert", "show"]);
    let output = nowhere.env_remove("HOME").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--identity"));
}

#[test]
fn identities_are_made_shown_and_issued() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let succeed = |args: &[&str]| {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    };
    let fingerprint = |text: &str| text.split_whitespace().find(|word| word.len() >= 64).unwrap().to_owned();
    let made = succeed(&["cert", "make", "--name", "here", "--out", &at("here")]);
    assert_eq!(fingerprint(&made), fingerprint(&succeed(&["cert", "show", &at("here")])));
    let again = run(home.path(), &["cert", "new", "--out", &at("here")]);
    assert_eq!(again.status.code(), Some(2), "an identity is never replaced");
    // A certificate file stands for its fingerprint.
    succeed(&["cert", "trust", &at("here/certificate.pem"), "here"]);
    assert!(succeed(&["cert", "show"]).contains(&fingerprint(&made)));

    succeed(&["cert", "ca", &at("authority")]);
    succeed(&["cert", "issue", "chile", "--ca", &at("authority"), "--out", &at("chile")]);
    assert_ne!(fingerprint(&succeed(&["cert", "show", &at("chile")])), fingerprint(&made));
    assert!(home.path().join("chile/ca.pem").is_file());
    assert_eq!(
        run(home.path(), &["cert", "issue", "x", "--ca", &at("none"), "--out", &at("x")]).status.code(),
        Some(6)
    );
}

/// Who we are is settled before anything is dialed.
#[test]
fn an_endpoint_needs_an_identity_and_trust() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a"), b"a").unwrap();
    let a = home.path().join("a").to_str().unwrap().to_owned();
    let send = || run(home.path(), &["send", &a, "xfer://127.0.0.1:9/l/"]);
    let output = send();
    assert_eq!(output.status.code(), Some(6));
    assert!(stderr(&output).contains("cert new"), "{}", stderr(&output));
    assert_eq!(run(home.path(), &["cert", "new"]).status.code(), Some(0));
    let output = send();
    assert_eq!(output.status.code(), Some(6));
    assert!(stderr(&output).contains("cert trust"), "{}", stderr(&output));
}

#[test]
fn clean_lists_what_is_left() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["clean", home.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("0 parts in "));
    assert_eq!(run(home.path(), &["clean", "/nonexistent"]).status.code(), Some(2));
}

#[test]
fn docs_are_written() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["docs", home.path().join("docs").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(home.path().join("docs/ccat-xfer-send.1").is_file());
}
