use serde_json::Value;

/// What `--json` printed, sorted by kind.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) files: Vec<Value>,
    pub(crate) progress: Vec<Value>,
    pub(crate) others: Vec<Value>,
    pub(crate) summary: Option<Value>,
}

impl Events {
    /// Reads whole lines only: a killed process may leave half of one. Anything else that is not an object with a
    /// schema fails the test.
    pub(crate) fn parse(stdout: &[u8]) -> Self {
        let mut events = Self::default();
        let whole = stdout.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
        for line in stdout[..whole].split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            let value: Value = serde_json::from_slice(line)
                .unwrap_or_else(|e| panic!("--json printed what is not JSON ({e}): {}", String::from_utf8_lossy(line)));
            assert_eq!(value["schema"], 1, "every event names its schema: {value}");
            match value["event"].as_str() {
                Some("file") => events.files.push(value),
                Some("progress") => events.progress.push(value),
                Some("summary") => {
                    assert!(events.summary.is_none(), "two summaries");
                    events.summary = Some(value);
                }
                Some(_) => events.others.push(value),
                None => panic!("an event without its kind: {value}"),
            }
        }
        events
    }

    pub(crate) fn summary(&self) -> &Value {
        self.summary.as_ref().expect("--json ended without a summary")
    }

    /// A counter of the summary.
    pub(crate) fn number(&self, field: &str) -> u64 {
        let value = &self.summary()[field];
        value.as_u64().unwrap_or_else(|| panic!("summary has no number {field}: {}", self.summary()))
    }

    /// The words of a list in the summary, or the one word.
    pub(crate) fn words(&self, field: &str) -> Vec<String> {
        match &self.summary()[field] {
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(one) => one.split(['+', ',']).map(|s| s.trim().to_owned()).collect(),
            other => panic!("summary has no {field}: {other}"),
        }
    }

    /// Kinds of link that carried data.
    pub(crate) fn transports(&self) -> Vec<String> {
        self.words("transport")
    }

    /// The most bytes that the receiver had acknowledged as durable, as far as this end had heard.
    pub(crate) fn durable(&self) -> u64 {
        self.progress.iter().filter_map(|p| p["bytes_durable"].as_u64()).max().unwrap_or(0)
    }

    pub(crate) fn done(&self) -> u64 {
        self.progress.iter().filter_map(|p| p["bytes_done"].as_u64()).max().unwrap_or(0)
    }

    /// How many files ended in this way.
    pub(crate) fn with_action(&self, action: &str) -> usize {
        self.files.iter().filter(|f| f["action"] == action).count()
    }
}

/// The path bytes of a `file` event.
pub(crate) fn path_of(file: &Value) -> Vec<u8> {
    let text = file["path_b64"].as_str().unwrap_or_else(|| panic!("a file event without path_b64: {file}"));
    let bytes = base64(text).unwrap_or_else(|| panic!("path_b64 is not base64: {file}"));
    if let Ok(utf8) = std::str::from_utf8(&bytes) {
        assert_eq!(file["path"].as_str(), Some(utf8), "path and path_b64 differ");
    } else {
        assert!(file["path"].is_null(), "a path that is not UTF-8 must not be spelled: {file}");
    }
    bytes
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    for c in text.bytes().filter(|&c| c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(out)
}
