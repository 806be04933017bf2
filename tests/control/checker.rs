//! What must hold of the history of transfers, whatever was done to the daemons. It is read from the database alone: the
//! events (written by triggers), the attempts and the records of what was found.

use std::collections::{BTreeMap, BTreeSet};

use ccat_xfer::model::{ErrorClass, Status};

use super::world::World;

/// One line of a transfer's history.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) actor: String,
    pub(crate) fence: u64,
    pub(crate) reason: String,
}

/// How a fence ended.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) fence: u64,
    pub(crate) number: u64,
    pub(crate) worker: String,
    pub(crate) outcome: String,
    pub(crate) log: String,
}

/// One transfer as it stands, and how it came there.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) id: i64,
    pub(crate) status: String,
    pub(crate) fence: u64,
    pub(crate) attempt: u64,
    pub(crate) error_class: String,
    pub(crate) events: Vec<Event>,
    pub(crate) attempts: Vec<Attempt>,
}

/// All transfers.
pub(crate) fn stories(world: &World) -> Vec<Story> {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let mut events: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    let columns = ["entity_id", "from_state", "to_state", "actor", "fence", "reason"];
    for row in world.rows(&columns, "FROM event WHERE entity = 'data_transfer' ORDER BY id") {
        let [id, from, to, actor, fence, reason] = row.try_into().expect("six columns");
        events.entry(id).or_default().push(Event { from, to, actor, fence: number(&fence), reason });
    }
    let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    let columns = ["data_transfer_id", "fence", "number", "worker_name", "outcome", "log"];
    for row in world.rows(&columns, "FROM attempt WHERE data_transfer_id IS NOT NULL ORDER BY fence") {
        let [id, fence, count, worker, outcome, log] = row.try_into().expect("six columns");
        let one = Attempt { fence: number(&fence), number: number(&count), worker, outcome, log };
        attempts.entry(id).or_default().push(one);
    }
    let columns = ["id", "status", "fence", "attempt", "error_class"];
    let rows = world.rows(&columns, "FROM data_transfer ORDER BY id");
    rows.into_iter()
        .map(|row| {
            let [id, status, fence, attempt, error_class] = row.try_into().expect("five columns");
            Story {
                events: events.remove(&id).unwrap_or_default(),
                attempts: attempts.remove(&id).unwrap_or_default(),
                id: id.parse().expect("a number"),
                status,
                fence: number(&fence),
                attempt: number(&attempt),
                error_class,
            }
        })
        .collect()
}

/// What the rules do not allow: one line each.
pub(crate) fn violations(world: &World, managers: &BTreeSet<String>) -> Vec<String> {
    let mut found: Vec<String> = stories(world).iter().flat_map(|story| of_story(story, managers)).collect();
    found.extend(of_results(world));
    found
}

/// Every move is legal, follows the one before it, and is made by whom the fence belongs to.
fn of_story(story: &Story, managers: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut owners: BTreeMap<u64, String> = BTreeMap::new();
    let (mut status, mut fence, mut completed) = (String::new(), 0, 0);
    for event in &story.events {
        let mut bad = |what: &str| found.push(format!("t{}: {what}: {event:?}", story.id));
        if event.from != status {
            bad("it does not begin where the one before it ended");
        }
        if event.from == "completed" {
            bad("something happened after its completion");
        }
        if event.fence < fence {
            bad("the fence went back");
        }
        let moved = event.from != event.to || event.fence != fence;
        if event.fence > fence {
            if event.fence != fence + 1 || event.to != "in_progress" || managers.contains(&event.actor) {
                bad("the fence rose without a worker's claim");
            }
            owners.insert(event.fence, event.actor.clone());
        } else if moved && !event.from.is_empty() {
            let owner = owners.get(&fence);
            let is_owner = owner == Some(&event.actor);
            let is_manager = managers.contains(&event.actor);
            let is_person = owner != Some(&event.actor) && !is_manager && !owners.values().any(|o| *o == event.actor);
            let allowed = match (event.from.as_str(), event.to.as_str()) {
                ("pending", "scheduled") | ("scheduled", "pending") => is_manager || is_owner,
                ("failed", "pending") => is_person,
                // A lost lease, or a cancelled one whose worker is gone.
                ("in_progress", "scheduled") => is_manager,
                (_, "failed") => is_owner || is_manager || is_person,
                // The end of an attempt, and what comes back late.
                ("in_progress", "pending") | (_, "in_progress" | "completed") => is_owner,
                _ => false,
            };
            if !allowed {
                bad(&format!("not by {owner:?}, whose fence {fence} is"));
            }
        }
        completed += usize::from(event.to == "completed" && event.from != "completed");
        (status, fence) = (event.to.clone(), event.fence);
    }
    let mut bad = |what: String| found.push(format!("t{}: {what}", story.id));
    if (&status, fence) != (&story.status, story.fence) {
        bad(format!("the row is {} with fence {}, its history ends {status} with {fence}", story.status, story.fence));
    }
    if completed > 1 {
        bad(format!("completed {completed} times"));
    }
    let mut last = 0;
    for attempt in &story.attempts {
        if attempt.fence <= last {
            bad(format!("fence {} ended twice", attempt.fence));
        }
        last = attempt.fence;
        if owners.get(&attempt.fence) != Some(&attempt.worker) {
            bad(format!("{attempt:?} was written for a fence of {:?}", owners.get(&attempt.fence)));
        }
    }
    let ends = story.attempts.iter().filter(|a| a.outcome == "completed").count();
    if ends != completed {
        bad(format!("{ends} attempts completed it, and {completed} moves"));
    }
    if story.status.parse::<Status>().is_ok_and(Status::is_over) {
        let fences: Vec<u64> = story.attempts.iter().map(|a| a.fence).collect();
        let all: Vec<u64> = (1..=story.fence).collect();
        // Nobody has to have begun what was cancelled.
        if fences != all {
            bad(format!("it is over, and of its {} fences these ended: {fences:?}", story.fence));
        }
    }
    found
}

/// No package arrived twice as different things, and every record belongs to an attempt of its fence.
fn of_results(world: &World) -> Vec<String> {
    let digest = world.hex("v.found_digest");
    let results = world.rows(
        &["v.package_id", "v.location_id", "v.algorithm", &format!("count(DISTINCT {digest})")],
        "FROM verification_record v WHERE v.found_digest = v.expected_digest \
         AND v.found_size_bytes = v.expected_size_bytes GROUP BY v.package_id, v.location_id, v.algorithm",
    );
    let mut found: Vec<String> = results
        .iter()
        .filter(|row| row[3] != "1")
        .map(|row| format!("package {} is {} different things at location {}", row[0], row[3], row[1]))
        .collect();
    let orphans = world.rows(
        &["v.data_transfer_id", "v.fence"],
        "FROM verification_record v WHERE v.data_transfer_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM attempt a \
         WHERE a.data_transfer_id = v.data_transfer_id AND a.fence = v.fence)",
    );
    found.extend(orphans.iter().map(|row| format!("t{}: a record of fence {} has no attempt", row[0], row[1])));
    let liars = world.rows(
        &["t.id"],
        "FROM data_transfer t JOIN data_transfer_package b ON b.id = t.data_transfer_package_id \
         WHERE t.status = 'completed' AND b.package_count <> (SELECT count(*) FROM transfer_request r \
         JOIN physical_copy c ON c.package_id = r.package_id AND c.location_id = t.destination_location_id \
         WHERE r.data_transfer_package_id = b.id AND c.status = 'present' AND c.verification = 'verified')",
    );
    found.extend(liars.iter().map(|row| format!("t{}: completed, and a package has no verified copy there", row[0])));
    found
}

/// How an attempt of a transfer should have ended; nothing for well.
pub(crate) type Model<'a> = dyn Fn(i64, u64) -> Option<ErrorClass> + 'a;

/// Where the rows are not where they must be, by what was planted in each attempt and by the table of error classes.
pub(crate) fn strays(stories: &[Story], model: &Model<'_>) -> Vec<String> {
    stories.iter().flat_map(|story| stray(story, model)).collect()
}

fn stray(story: &Story, model: &Model<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut bad = |what: String| found.push(format!("t{}: {what}", story.id));
    if story.attempt != story.fence {
        bad(format!("{} attempts with {} fences", story.attempt, story.fence));
    }
    let mut should = (String::from("pending"), String::new());
    let mut failures: Vec<ErrorClass> = Vec::new();
    for attempt in &story.attempts {
        if attempt.number != attempt.fence {
            bad(format!("attempt {} has fence {}", attempt.number, attempt.fence));
        }
        let planted = model(story.id, attempt.number);
        // Whoever was killed or frozen did not come to what was planted.
        let right = match attempt.outcome.as_str() {
            "handed_back" => true,
            "lost_worker" => true,
            "completed" => planted.is_none(),
            class => planted.is_some_and(|p| p.as_str() == class),
        };
        if !right {
            let outcome = &attempt.outcome;
            bad(format!("attempt {} ended {outcome}, planted was {planted:?}: {}", attempt.number, attempt.log));
        }
        if attempt.outcome == "bug" && !attempt.log.contains("a planted bug") {
            bad(format!("attempt {} has no word of the panic: {}", attempt.number, attempt.log));
        }
        // A person's retry counts anew.
        let retried = |e: &&Event| e.from == "failed" && e.to == "pending";
        if story.events.iter().filter(retried).any(|e| e.fence + 1 == attempt.fence) {
            failures.clear();
        }
        should = match attempt.outcome.as_str() {
            "completed" => ("completed".into(), String::new()),
            "handed_back" => should,
            // The sweeper fails what too many were lost with; else it is claimed anew.
            "lost_worker" if is_last_loss(story, attempt) => ("failed".into(), "lost_worker".into()),
            "lost_worker" => ("pending".into(), String::new()),
            word => {
                let class: ErrorClass = word.parse().expect("a class");
                let before = failures.iter().filter(|f| **f == class).count();
                failures.push(class);
                let more = class.policy().retries as usize > before;
                (if more { "pending" } else { "failed" }.into(), word.to_owned())
            }
        };
    }
    let over = ["completed", "failed"].contains(&story.status.as_str());
    if over && should != (story.status.clone(), story.error_class.clone()) {
        bad(format!("it is {} ({}), and should be {should:?}", story.status, story.error_class));
    }
    found
}

fn is_last_loss(story: &Story, attempt: &Attempt) -> bool {
    let failed = |e: &Event| e.fence == attempt.fence && e.to == "failed" && e.reason.contains("were lost with it");
    story.events.iter().any(failed)
}
