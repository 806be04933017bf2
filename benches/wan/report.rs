//! What a run says at its end, for people and as JSON.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::wan::{Direction, State, Tally, Wan};

/// What passed within one step of the series.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Since the commands began.
    pub(crate) at: Duration,
    pub(crate) states: [State; 2],
}

impl Sample {
    pub(crate) fn take(wan: &Wan, at: Duration) -> Self {
        Self { at, states: Direction::BOTH.map(|d| wan.state(d)) }
    }

    fn json(&self) -> Value {
        let of = |state: &State| {
            json!({
                "delivered": state.counters.delivered.bytes,
                "lost": state.counters.lost.bytes,
                "dropped": state.counters.dropped.bytes,
                "down": state.counters.down.bytes,
                "queue": state.queued,
            })
        };
        json!({"at": self.at.as_secs_f64(), "a_to_b": of(&self.states[0]), "b_to_a": of(&self.states[1])})
    }
}

/// How one of the commands ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ended {
    /// As a shell would say it: 128 and more for a signal.
    pub(crate) code: Option<i32>,
    /// The command and the children that it waited for, to a hundredth.
    pub(crate) cpu: Duration,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) took: Duration,
    pub(crate) ended: [Ended; 2],
    pub(crate) last: Sample,
    /// Packets that the model never saw, by direction.
    pub(crate) unseen: [u64; 2],
    pub(crate) emulator_cpu: Duration,
    pub(crate) samples: Vec<Sample>,
    pub(crate) limit_reached: bool,
}

impl Report {
    pub(crate) fn json(&self, link: &str) -> Value {
        let end = |e: &Ended| json!({"exit": e.code, "cpu_seconds": e.cpu.as_secs_f64()});
        json!({
            "link": link,
            "seconds": self.took.as_secs_f64(),
            "limit_reached": self.limit_reached,
            "a": end(&self.ended[0]),
            "b": end(&self.ended[1]),
            "a_to_b": direction(&self.last.states[0], self.unseen[0]),
            "b_to_a": direction(&self.last.states[1], self.unseen[1]),
            "emulator_cpu_seconds": self.emulator_cpu.as_secs_f64(),
            "series": self.samples.iter().map(Sample::json).collect::<Vec<_>>(),
        })
    }

    pub(crate) fn print(&self) {
        let seconds = self.took.as_secs_f64();
        for direction in Direction::BOTH {
            let state = &self.last.states[direction.index()];
            let c = &state.counters;
            eprintln!(
                "wan: {}: {} packets, {:.1} MB, {:.1} Mbit/s; lost {}; dropped {}; down {}; largest queue {:.2} MB",
                direction.name(),
                c.delivered.packets,
                mega(c.delivered.bytes),
                mega(c.delivered.bytes) * 8.0 / seconds.max(1e-9),
                share(c.lost, c.offered),
                share(c.dropped, c.offered),
                c.down.packets,
                mega(c.largest_queue),
            );
            let (late, unseen) = (&state.late, self.unseen[direction.index()]);
            if unseen > 0 || state.refused > 0 || late.mean() > Duration::from_millis(1) {
                eprintln!(
                    "wan: {}: NOT EXACT: this machine is too slow for the link: {unseen} rows unseen, {} refused, late by {:?} \
                     in the mean, {:?} at most",
                    direction.name(),
                    state.refused,
                    late.mean(),
                    late.most,
                );
            }
        }
        let [a, b] = self.ended.map(|e| e.cpu.as_secs_f64());
        eprintln!(
            "wan: {seconds:.2} s; CPU seconds: a {a:.2}, b {b:.2}, emulator {:.2}",
            self.emulator_cpu.as_secs_f64()
        );
    }
}

pub(crate) fn direction(state: &State, unseen: u64) -> Value {
    let of = |t: Tally| json!({"packets": t.packets, "bytes": t.bytes});
    let c = &state.counters;
    json!({
        "offered": of(c.offered),
        "delivered": of(c.delivered),
        "lost": of(c.lost),
        "dropped": of(c.dropped),
        "down": of(c.down),
        "largest_queue": c.largest_queue,
        "queue": state.queued,
        "unseen_rows": unseen,
        "refused_rows": state.refused,
        "late_mean_us": state.late.mean().as_secs_f64() * 1e6,
        "late_max_us": state.late.most.as_secs_f64() * 1e6,
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn share(part: Tally, all: Tally) -> String {
    format!("{} ({:.4} %)", part.packets, part.packets as f64 * 100.0 / (all.packets.max(1)) as f64)
}

/// CPU time of this process, and of its children that have ended and were waited for.
pub(crate) fn cpu() -> [Duration; 2] {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field may hold spaces, and ends with the last bracket (man 5 proc_pid_stat).
    let fields: Vec<u64> =
        text.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let ticks = |at: usize| fields.get(at).copied().unwrap_or(0) + fields.get(at + 1).copied().unwrap_or(0);
    [11, 13].map(|at| Duration::from_millis(ticks(at) * 1000 / per_second))
}
