use std::{
    io::Write as _,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{have, is_root};

/// A network namespace of a unique name, removed with the value.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cx{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let netns = Self { name };
        ip(&["netns", "add", &netns.name]);
        ip(&["-n", &netns.name, "link", "set", "lo", "up"]);
        netns
    }

    /// The words that run a program inside. `ip` replaces itself, so the process id stays that of the program.
    pub(crate) fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Takes a device of this namespace down or up.
    pub(crate) fn link(&self, device: &str, up: bool) {
        ip(&["-n", &self.name, "link", "set", device, if up { "up" } else { "down" }]);
    }

    /// Refuses traffic here, in place of what was refused before. ssh's port and answers to what went out stay open.
    pub(crate) fn block(&self, block: Block) {
        let rule = match block {
            Block::Nothing => "",
            Block::Inbound => {
                "ct state established,related accept\niif lo accept\ntcp dport 2222 accept\nmeta l4proto { tcp, udp } drop"
            }
            Block::Udp => "meta l4proto udp drop",
        };
        let text = format!(
            "table inet harness\ndelete table inet harness\ntable inet harness {{\n chain input {{\n  type filter hook input \
             priority 0; policy accept;\n{rule}\n }}\n}}\n"
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft starts");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("nft ends").success(), "nft refused:\n{text}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Also while a test panics: no second panic.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// What a namespace does not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Nothing,
    /// New TCP and UDP but for ssh.
    Inbound,
    /// All UDP.
    Udp,
}

/// Two hosts on one wire, or two hosts with one between them that forwards nothing.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) here: Netns,
    pub(crate) there: Netns,
    pub(crate) between: Option<Netns>,
}

impl Topology {
    pub(crate) const HERE: &'static str = "10.231.1.1";
    pub(crate) const THERE: &'static str = "10.231.1.2";
    pub(crate) const BETWEEN: &'static str = "10.231.1.3";
    pub(crate) const BEYOND: &'static str = "10.231.2.2";

    /// Why none can be made here. Found out once: tests of one file run beside each other.
    pub(crate) fn missing() -> Option<String> {
        static PROBED: OnceLock<Option<String>> = OnceLock::new();
        PROBED.get_or_init(Self::probe).clone()
    }

    fn probe() -> Option<String> {
        if !is_root() {
            return Some("network namespaces need root".to_owned());
        }
        if let Some(tool) = ["ip", "nft"].into_iter().find(|t| !have(t)) {
            return Some(format!("{tool} is not installed"));
        }
        let probe = format!("cxprobe{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &probe]).output().is_ok_and(|o| o.status.success());
        let table = made
            && Command::new("ip")
                .args([
                    "netns",
                    "exec",
                    &probe,
                    "nft",
                    "add table inet probe; add chain inet probe c; add rule inet probe c ct state established accept",
                ])
                .output()
                .is_ok_and(|o| o.status.success());
        let veth = made
            && Command::new("ip")
                .args(["-n", &probe, "link", "add", "v0", "type", "veth", "peer", "name", "v1"])
                .output()
                .is_ok_and(|o| o.status.success());
        let _ = Command::new("ip").args(["netns", "del", &probe]).output();
        match (made, table, veth) {
            (false, ..) => Some("the kernel refuses network namespaces".to_owned()),
            (_, false, _) => Some("the kernel has no nftables with connection tracking".to_owned()),
            (_, _, false) => Some("the kernel has no veth".to_owned()),
            _ => None,
        }
    }

    /// `here` (device `eth0`) and `there` on one wire.
    pub(crate) fn pair() -> Self {
        let (here, there) = (Netns::new(), Netns::new());
        wire(&here, "eth0", Self::HERE, &there, "eth0", Self::THERE);
        Self { here, there, between: None }
    }

    /// `here` - `between` - `there`: the ends have no route to each other.
    pub(crate) fn with_jump() -> Self {
        let (here, between, there) = (Netns::new(), Netns::new(), Netns::new());
        wire(&here, "eth0", Self::HERE, &between, "eth0", Self::BETWEEN);
        wire(&between, "eth1", "10.231.2.3", &there, "eth0", Self::BEYOND);
        Self { here, there, between: Some(between) }
    }
}

fn wire(a: &Netns, a_device: &str, a_address: &str, b: &Netns, b_device: &str, b_address: &str) {
    ip(&["link", "add", a_device, "netns", &a.name, "type", "veth", "peer", "name", b_device, "netns", &b.name]);
    for (netns, device, address) in [(a, a_device, a_address), (b, b_device, b_address)] {
        ip(&["-n", &netns.name, "addr", "add", &format!("{address}/24"), "dev", device]);
        ip(&["-n", &netns.name, "link", "set", device, "up"]);
    }
}

fn ip(words: &[&str]) {
    let out = Command::new("ip").args(words).output().expect("ip starts");
    assert!(out.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&out.stderr));
}
