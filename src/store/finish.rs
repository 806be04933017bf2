//! The end of an attempt, in one fenced transaction: what was found, where copies lie now, the attempt's history, the
//! row's next status and the route's breaker. All of it or nothing.
//!
//! One package that cannot be moved decides for the transfer of its bundle: it fails. What the attempt verified of the other
//! packages is written all the same, and their copies are there.
//!
//! Outcomes that say that everything arrived are written many at once, in as many statements as one needs. Whatever else an
//! outcome says is rare, and is written alone.
//!
//! An outcome may come late (it was spooled while the database was away) and twice (a commit's answer was lost). It
//! counts as long as nobody has claimed the work since; its second copy meets its own `attempt` row.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    Store, StoreError, fault,
    many::{any_of, list, with_ids},
    scrub::ReadingRules,
    sql::{Tx, Value, args},
    wakeups::Wakeup,
    work::{EndedFence, Kind, WorkRow},
    workers::WorkerSession,
};
use crate::model::{
    AttemptOutcome, Breaker, CheckMethod, End, Ending, ErrorClass, Evidence, Fence, LinkNews, LocationId, Move,
    PackageId, ReadHow, RouteId, Status, Timestamp, Work,
};

/// Records of one statement.
const RECORDS_AT_ONCE: usize = 100;

/// What became of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was written.
    Now {
        /// The row's status after it.
        status: Status,
        /// When the next attempt is due; nothing if there is none.
        next_attempt_at: Option<Timestamp>,
    },
    /// It was there already: a replay.
    Before,
}

/// What follows from an outcome.
struct Next {
    status: Status,
    retry_count: u32,
    next_attempt_at: Option<Timestamp>,
    /// Class and text, for the row.
    error: Option<(ErrorClass, String)>,
    reason: String,
}

impl Store {
    /// Writes how an attempt ended. `random` spreads retries and the breaker's looks, over its whole range.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when the fence was overtaken, or is another worker's or another claim's (of a database
    /// that was restored, or of another one), or the work is over: nothing was written, and nothing will ever be.
    /// [`StoreError::Refused`] when the outcome contradicts the rules, such as `Completed` where a
    /// package has no equal record of this attempt at the destination: to send it again is of no use. Every other
    /// error: try again.
    pub async fn finish(&self, outcome: &AttemptOutcome, random: u32) -> Result<Recorded, StoreError> {
        let outcome = plain(outcome);
        let outcome = outcome.as_ref();
        let mut tx = self.write().await?;
        let Some(row) = WorkRow::lock(&mut tx, outcome.work).await? else {
            return Err(StoreError::NotFound { what: "work", name: outcome.work.to_string() });
        };
        let before = match &row.ended {
            known if row.fence == outcome.fence => known.clone(),
            _ => EndedFence::of(&mut tx, outcome.work, outcome.fence).await?,
        };
        match judge(&row, outcome, before.as_ref()) {
            Judged::Counts => {}
            Judged::Before => return Ok(Recorded::Before),
            Judged::Stale => return Err(self.stale(outcome)),
        }
        let now = row.read_at;
        let next = decide(&mut tx, &row, outcome, now, random, self.retry_percent).await?;
        record(&mut tx, &[(&row, outcome)]).await?;
        if let Ending::Failed { class, .. } = &outcome.ending
            && class.policy().end == End::SourceSuspect
        {
            suspect_source(&mut tx, &row, outcome, *class).await?;
        }
        write_attempts(&mut tx, &[(&row, outcome)]).await?;
        move_row(&mut tx, &row, outcome, &next).await?;
        let mut woken = next.status == Status::Pending;
        if let Some(route) = row.route {
            woken |= tell_breaker(&mut tx, route, &row, outcome, now, random).await?;
        }
        tx.commit().await?;
        // A completed hop may be what another one waited for.
        if woken || next.status == Status::Completed {
            self.wake(Wakeup::Pending);
            self.wake(Wakeup::Outbox);
        }
        Ok(Recorded::Now { status: next.status, next_attempt_at: next.next_attempt_at })
    }

    /// [`Store::finish`] for several outcomes, of which those that completed share a transaction. One answer for each, in
    /// order: what is wrong with one of them is the others' concern as little as if they were written one by one.
    pub async fn finish_all(&self, outcomes: &[&AttemptOutcome], random: u32) -> Vec<Result<Recorded, StoreError>> {
        let mut answers: Vec<Option<Result<Recorded, StoreError>>> = outcomes.iter().map(|_| None).collect();
        for kind in Kind::ALL {
            let mut seen = BTreeSet::new();
            // One row is written once in a transaction.
            let places: Vec<_> = (0..outcomes.len())
                .filter(|&n| Kind::of(outcomes[n].work) == kind && outcomes[n].ending == Ending::Completed)
                .filter(|&n| seen.insert(outcomes[n].work))
                .collect();
            if places.len() < 2 {
                continue;
            }
            let some: Vec<_> = places.iter().map(|&n| outcomes[n]).collect();
            match self.finish_completed(kind, &some, random).await {
                Ok(written) => {
                    for (&n, answer) in places.iter().zip(written) {
                        answers[n] = answer;
                    }
                }
                // A database that is away is not asked for each of them.
                Err(StoreError::Unavailable(why)) => {
                    places.iter().for_each(|&n| answers[n] = Some(Err(StoreError::Unavailable(why.clone()))));
                }
                // Perhaps the fault of one of them.
                Err(error) => tracing::debug!(%error, outcomes = some.len(), "outcomes are written one by one"),
            }
        }
        let mut all = Vec::with_capacity(outcomes.len());
        for (outcome, answer) in outcomes.iter().zip(answers) {
            all.push(match answer {
                Some(answer) => answer,
                None => self.finish(outcome, random).await,
            });
        }
        all
    }

    /// No answer for one whose row is not there.
    async fn finish_completed(
        &self,
        kind: Kind,
        outcomes: &[&AttemptOutcome],
        random: u32,
    ) -> Result<Vec<Option<Result<Recorded, StoreError>>>, StoreError> {
        let outcomes: Vec<_> = outcomes.iter().map(|outcome| plain(outcome)).collect();
        let mut tx = self.write().await?;
        let mut numbers: Vec<_> = outcomes.iter().map(|outcome| outcome.work.number()).collect();
        numbers.sort_unstable();
        // Always in this order, so that two workers never hold what the other one wants.
        let condition = format!("WHERE t.id IN ({}) ORDER BY t.id", any_of(1, numbers.len()));
        let rows = WorkRow::lock_some(&mut tx, kind, &condition, &with_ids(&[], numbers.iter().copied()), "").await?;
        let rows: BTreeMap<_, _> = rows.into_iter().map(|row| (row.work, row)).collect();
        let ended = EndedFence::of_all(&mut tx, kind, &numbers).await?;
        let mut answers = Vec::with_capacity(outcomes.len());
        let mut counting = Vec::with_capacity(outcomes.len());
        for outcome in &outcomes {
            let outcome = outcome.as_ref();
            let Some(row) = rows.get(&outcome.work) else {
                answers.push(None);
                continue;
            };
            answers.push(Some(match judge(row, outcome, ended.get(&(outcome.work, outcome.fence))) {
                Judged::Before => Ok(Recorded::Before),
                Judged::Stale => Err(self.stale(outcome)),
                Judged::Counts => {
                    let illegal = |change| StoreError::Illegal { what: row.work.to_string(), change };
                    let status = row.status.on(Move::Complete).map_err(illegal)?;
                    counting.push((row, outcome));
                    Ok(Recorded::Now { status, next_attempt_at: None })
                }
            }));
        }
        if counting.is_empty() {
            return Ok(answers);
        }
        record(&mut tx, &counting).await?;
        write_attempts(&mut tx, &counting).await?;
        complete_rows(&mut tx, kind, &counting).await?;
        // What the first one says of a route, the others say too.
        let routes: BTreeMap<_, _> = counting.iter().rev().filter_map(|c| Some((c.0.route?, *c))).collect();
        for (route, (row, outcome)) in routes {
            tell_breaker(&mut tx, route, row, outcome, row.read_at, random).await?;
        }
        tx.commit().await?;
        self.wake(Wakeup::Pending);
        self.wake(Wakeup::Outbox);
        Ok(answers)
    }

    fn stale(&self, outcome: &AttemptOutcome) -> StoreError {
        self.count_stale();
        StoreError::Stale { work: outcome.work, fence: outcome.fence }
    }

    /// A worker that stops gives back what it holds. It is no failure, and the next worker may begin at once.
    /// Where the answer may be lost, an outcome with [`Ending::HandedBack`] for [`Store::finish`] can be replayed instead.
    ///
    /// # Errors
    /// As for [`Store::finish`].
    pub async fn hand_back(
        &self,
        session: &WorkerSession,
        work: Work,
        fence: Fence,
        bytes_done: u64,
        reason: &str,
    ) -> Result<Recorded, StoreError> {
        let mut tx = self.read().await?;
        let row = tx
            .row(
                format!(
                    "SELECT coalesce(claimed_at, now_us()) AS began, now_us() AS now FROM {} WHERE id = $1",
                    work.table()
                ),
                args![work.number()],
            )
            .await?;
        drop(tx);
        let row = row.ok_or_else(|| StoreError::NotFound { what: "work", name: work.to_string() })?;
        let ending = Ending::HandedBack { reason: reason.to_owned() };
        let mut outcome =
            AttemptOutcome::new(work, fence, session.name(), row.time("began")?, row.time("now")?, ending);
        outcome.bytes_done = bytes_done;
        // Nothing is drawn: neither a wait nor a pause follows.
        self.finish(&outcome, 0).await
    }
}

/// Whether an outcome still counts.
enum Judged {
    Counts,
    /// It was written before, and this is its replay.
    Before,
    /// Somebody else has the work by now, or it is over.
    Stale,
}

/// `before` is how the outcome's fence ended, if it has.
fn judge(row: &WorkRow, outcome: &AttemptOutcome, before: Option<&EndedFence>) -> Judged {
    if fault::fence_is_ignored() {
        return Judged::Counts;
    }
    if let Some(before) = before {
        let this = EndedFence {
            outcome: word(&outcome.ending).to_owned(),
            at: ended_at(outcome),
            worker: outcome.worker.clone(),
        };
        return if *before == this { Judged::Before } else { Judged::Stale };
    }
    // A database that was restored gives a fence again, to somebody else or to the same worker at another time; so
    // does another database whose workers have the same spool.
    let is_his = row.claimed_by.as_ref().is_none_or(|name| *name == outcome.worker)
        && row.claimed_at.is_none_or(|at| at == outcome.started_at.micros());
    if row.fence == outcome.fence && is_his && !row.status.is_over() { Judged::Counts } else { Judged::Stale }
}

/// The outcome with texts that a database takes: what an error says may hold bytes of a file, and a NUL among them would
/// have the whole outcome refused for ever.
fn plain(outcome: &AttemptOutcome) -> Cow<'_, AttemptOutcome> {
    let chain = match &outcome.ending {
        Ending::Failed { chain, .. } => chain.as_slice(),
        Ending::HandedBack { reason } => std::slice::from_ref(reason),
        Ending::Completed => &[],
    };
    if !chain.iter().chain([&outcome.log]).any(|text| text.contains('\0')) {
        return Cow::Borrowed(outcome);
    }
    let mut outcome = outcome.clone();
    let clean = |text: &mut String| *text = text.replace('\0', "\u{fffd}");
    clean(&mut outcome.log);
    match &mut outcome.ending {
        Ending::Failed { chain, .. } => chain.iter_mut().for_each(clean),
        Ending::HandedBack { reason } => clean(reason),
        Ending::Completed => {}
    }
    Cow::Owned(outcome)
}

const fn word(ending: &Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::Failed { class, .. } => class.as_str(),
        Ending::HandedBack { .. } => "handed_back",
    }
}

/// A worker's clock may be set while it works; a row's end is not before its beginning.
fn ended_at(outcome: &AttemptOutcome) -> i64 {
    outcome.ended_at.max(outcome.started_at).micros()
}

async fn decide(
    tx: &mut Tx,
    row: &WorkRow,
    outcome: &AttemptOutcome,
    now: Timestamp,
    random: u32,
    retry_percent: u32,
) -> Result<Next, StoreError> {
    let illegal = |change| StoreError::Illegal { what: row.work.to_string(), change };
    let cancelled = |why: String| Next {
        status: Status::Failed,
        retry_count: row.retry_count,
        next_attempt_at: None,
        error: Some((ErrorClass::Cancelled, why)),
        reason: "cancelled".into(),
    };
    let next = match &outcome.ending {
        Ending::Completed => Next {
            status: row.status.on(Move::Complete).map_err(illegal)?,
            retry_count: row.retry_count,
            next_attempt_at: None,
            error: None,
            reason: format!("attempt {} delivered everything", row.attempt),
        },
        Ending::HandedBack { reason } if row.cancel_requested => cancelled(reason.clone()),
        Ending::HandedBack { reason } => Next {
            status: row.status.on(Move::GiveBack).map_err(illegal)?,
            retry_count: row.retry_count,
            next_attempt_at: Some(now),
            error: None,
            reason: format!("handed back: {reason}"),
        },
        Ending::Failed { class, chain } => {
            let text = if chain.is_empty() { class.to_string() } else { chain.join(": ") };
            let before = failures_of(tx, row, *class).await?;
            match class.policy().paced(retry_percent).wait(before, random) {
                Some(_) if row.cancel_requested => cancelled(text),
                Some(wait) => Next {
                    status: row.status.on(Move::GiveBack).map_err(illegal)?,
                    retry_count: row.retry_count.saturating_add(1),
                    next_attempt_at: Some(now.after(wait)),
                    reason: format!("attempt {} failed ({class}); again in {} ms", row.attempt, wait.as_millis()),
                    error: Some((*class, text)),
                },
                None => Next {
                    status: row.status.on(Move::Fail).map_err(illegal)?,
                    retry_count: row.retry_count,
                    next_attempt_at: None,
                    reason: format!("attempt {} failed ({class}), and no further one is of use", row.attempt),
                    error: Some((*class, text)),
                },
            }
        }
    };
    Ok(next)
}

/// Failures of this class among those that count since a person last retried the work: each class has its own limit.
async fn failures_of(tx: &mut Tx, row: &WorkRow, class: ErrorClass) -> Result<u32, StoreError> {
    if row.retry_count == 0 {
        return Ok(0);
    }
    let text = format!(
        "SELECT count(*) AS failures FROM (SELECT outcome FROM attempt WHERE {} = $1 \
         AND outcome NOT IN ('completed', 'handed_back', 'lost_worker') ORDER BY fence DESC LIMIT $2) AS a \
         WHERE outcome = $3",
        Kind::of(row.work).reference()
    );
    let found = tx.row(text, args![row.work.number(), row.retry_count, class.as_str()]).await?;
    let count = found.ok_or_else(|| StoreError::Corrupt("no count".into()))?.size("failures")?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Records and the copies that they prove or disprove, of outcomes of one kind. Two statements for all of them: behind a WAN
/// each one costs a round trip, and a bundle may hold hundreds of packages.
async fn record(tx: &mut Tx, outcomes: &[(&WorkRow, &AttemptOutcome)]) -> Result<(), StoreError> {
    let mut all: Vec<_> = outcomes
        .iter()
        .flat_map(|&(row, outcome)| outcome.evidence.iter().map(move |evidence| Found { row, outcome, evidence }))
        .collect();
    // In the order in which everybody locks packages.
    all.sort_by_key(|found| (found.evidence.package, found.evidence.location));
    for some in all.chunks(RECORDS_AT_ONCE) {
        record_some(tx, some).await?;
    }
    Ok(())
}

/// What one attempt found of one package.
#[derive(Clone, Copy)]
struct Found<'a> {
    row: &'a WorkRow,
    outcome: &'a AttemptOutcome,
    evidence: &'a Evidence,
}

async fn record_some(tx: &mut Tx, all: &[Found<'_>]) -> Result<(), StoreError> {
    let Some(first) = all.first() else { return Ok(()) };
    let mut args = Vec::new();
    let mut values = Vec::with_capacity(all.len());
    for Found { row, evidence: e, .. } in all {
        values.push(format!("({})", list(args.len() + 1, 19)));
        args.extend_from_slice(args![e.package, e.location, e.algorithm.as_str(), e.expected_digest, e.found_digest]);
        args.push(Value::size(e.expected_size_bytes)?);
        args.push(Value::size(e.found_size_bytes)?);
        args.extend_from_slice(args![
            e.method.as_str(),
            e.medium.as_str(),
            Value::Flag(Some(e.cached)),
            e.how.map(ReadHow::as_str),
            e.unread_reason.clone(),
            &e.host,
            &e.version,
            e.receiver_key.clone(),
            e.started_at,
            e.ended_at.max(e.started_at),
            row.work.number(),
            row.fence
        ]);
    }
    let text = format!(
        "INSERT INTO verification_record (package_id, location_id, algorithm, expected_digest, found_digest, \
         expected_size_bytes, found_size_bytes, method, medium, cached, read_how, unread_reason, host, version, \
         receiver_key, started_at, ended_at, {}, fence) VALUES {}",
        Kind::of(first.row.work).reference(),
        values.join(", ")
    );
    tx.execute(text, &args).await?;
    let mut rules = BTreeMap::new();
    for Found { row, .. } in all {
        if matches!(row.work, Work::Archive(_)) && !rules.contains_key(&row.destination) {
            rules.insert(row.destination, ReadingRules::of(tx, row.destination).await?);
        }
    }
    let counts = |f: &Found<'_>| match rules.get(&f.row.destination) {
        // An archive holds a package once its sidecar lies beside it too, and only then has the attempt delivered.
        Some(Some(rules)) => rules.count(f.evidence) && f.outcome.ending == Ending::Completed,
        _ => true,
    };
    // One statement may not touch a copy twice. In this order, as everybody's: two workers may write the same copies.
    let arrived: BTreeMap<_, _> = all
        .iter()
        .filter(|f| f.evidence.is_equal() && f.evidence.location == f.row.destination && counts(f))
        .map(|f| ((f.evidence.package, f.evidence.location), f))
        .collect();
    if !arrived.is_empty() {
        let mut args = Vec::new();
        let mut values = Vec::with_capacity(arrived.len());
        for Found { row, outcome, evidence: e } in arrived.values() {
            let n = args.len();
            values.push(format!("({}, 'present', 'verified', ${}, ${})", list(n + 1, 4), n + 5, n + 6));
            args.extend_from_slice(args![e.package, e.location, e.path.as_slice()]);
            args.push(Value::size(e.found_size_bytes)?);
            args.push((&outcome.worker).into());
            args.push(format!("{} fence {}: {}", row.work, row.fence, e.method).into());
        }
        let text = format!(
            "INSERT INTO physical_copy (package_id, location_id, path, size_bytes, status, verification, changed_by, \
             change_reason) VALUES {} \
             ON CONFLICT (package_id, location_id) DO UPDATE SET path = excluded.path, status = 'present', \
             verification = 'verified', updated_at = now_us(), changed_by = excluded.changed_by, \
             change_reason = excluded.change_reason",
            values.join(", ")
        );
        tx.execute(text, &args).await?;
    }
    for Found { row, outcome, evidence: e } in all {
        // What did not arrive whole was never made visible; only a look at what lies there speaks against a copy.
        let is_a_look = matches!(e.method, CheckMethod::ReadBack | CheckMethod::Scrub);
        if !e.is_equal() && is_a_look && e.location == row.destination {
            let why = "it was read there, and differs";
            doubt(tx, row, &outcome.worker, e.package, e.location, "corrupt", why).await?;
        }
    }
    Ok(())
}

/// The origin's copies from which no retry reads better bytes. Without a word about which ones, all those that this
/// attempt did not bring over as they were registered: a person has to look.
async fn suspect_source(
    tx: &mut Tx,
    row: &WorkRow,
    outcome: &AttemptOutcome,
    class: ErrorClass,
) -> Result<(), StoreError> {
    let mut packages: Vec<PackageId> =
        outcome.evidence.iter().filter(|e| e.location == row.origin && !e.is_equal()).map(|e| e.package).collect();
    if packages.is_empty() {
        let text = match row.work {
            Work::Transfer(_) => {
                "SELECT r.package_id FROM transfer_request r \
                 JOIN data_transfer t ON t.data_transfer_package_id = r.data_transfer_package_id WHERE t.id = $1"
            }
            Work::Archive(_) => "SELECT package_id FROM long_term_archive_transfer WHERE id = $1",
        };
        let rows = tx.rows(text, args![row.work.number()]).await?;
        packages = rows.iter().map(|r| r.int("package_id").map(PackageId::new)).collect::<Result<_, _>>()?;
        let arrived = |package| {
            let mut evidence = outcome.evidence.iter();
            evidence.any(|e| e.package == package && e.location == row.destination && e.is_equal())
        };
        packages.retain(|&package| !arrived(package));
    }
    for package in packages {
        doubt(tx, row, &outcome.worker, package, row.origin, "suspect", class.as_str()).await?;
    }
    Ok(())
}

async fn doubt(
    tx: &mut Tx,
    row: &WorkRow,
    by: &str,
    package: PackageId,
    location: LocationId,
    verification: &str,
    why: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE physical_copy SET verification = $3, updated_at = now_us(), changed_by = $4, change_reason = $5 \
         WHERE package_id = $1 AND location_id = $2 AND verification <> $3 AND verification <> 'corrupt'",
        args![package, location, verification, by, format!("{} fence {}: {why}", row.work, row.fence)],
    )
    .await?;
    Ok(())
}

/// The history of attempts of one kind.
async fn write_attempts(tx: &mut Tx, outcomes: &[(&WorkRow, &AttemptOutcome)]) -> Result<(), StoreError> {
    let Some((first, _)) = outcomes.first() else { return Ok(()) };
    let mut args = Vec::new();
    let mut values = Vec::with_capacity(outcomes.len());
    for (row, outcome) in outcomes {
        let chain = match &outcome.ending {
            Ending::Completed => Vec::new(),
            Ending::Failed { chain, .. } => chain.clone(),
            Ending::HandedBack { reason } => vec![reason.clone()],
        };
        let chain = serde_json::to_string(&chain).map_err(|e| StoreError::Refused(e.to_string()))?;
        let n = args.len();
        values.push(format!("({}, (SELECT id FROM worker WHERE name = ${})", list(n + 1, 10), n + 4) + ")");
        args.extend_from_slice(args![
            row.work.number(),
            row.fence,
            row.attempt,
            &outcome.worker,
            outcome.started_at,
            ended_at(outcome),
            word(&outcome.ending),
            chain
        ]);
        args.push(Value::size(outcome.bytes_done)?);
        args.push((&outcome.log).into());
    }
    let text = format!(
        "INSERT INTO attempt ({}, fence, number, worker_name, started_at, ended_at, outcome, error_chain, bytes_done, log, \
         worker_id) VALUES {}",
        Kind::of(first.work).reference(),
        values.join(", ")
    );
    tx.execute(text, &args).await?;
    Ok(())
}

/// Rows whose attempts delivered everything.
async fn complete_rows(tx: &mut Tx, kind: Kind, done: &[(&WorkRow, &AttemptOutcome)]) -> Result<(), StoreError> {
    let text = format!(
        "UPDATE {} SET status = 'completed', losses = 0, owner = NULL, lease_until = NULL, lease_boot = NULL, \
         bytes_done = bytes_total, error_class = NULL, error_text = NULL, finished_at = now_us(), updated_at = now_us(), \
         changed_by = coalesce(claimed_by, changed_by), change_reason = {DELIVERED} WHERE id IN ({})",
        kind.table(),
        any_of(1, done.len())
    );
    let args = with_ids(&[], done.iter().map(|(row, _)| row.work.number()));
    if tx.execute(text, &args).await? != u64::try_from(done.len()).unwrap_or(u64::MAX) {
        return Err(StoreError::Conflict("a row that was locked is not there".into()));
    }
    Ok(())
}

/// Why a row is completed, as the database spells it.
const DELIVERED: &str = "'attempt ' || CAST(attempt AS TEXT) || ' delivered everything'";

async fn move_row(tx: &mut Tx, row: &WorkRow, outcome: &AttemptOutcome, next: &Next) -> Result<(), StoreError> {
    // An outcome ends what was counted against its workers, and a handed-back row keeps its last error for `explain`.
    let text = format!(
        "UPDATE {} SET status = $3, retry_count = $4, losses = 0, owner = NULL, lease_until = NULL, lease_boot = NULL, \
         next_attempt_at = coalesce($5, next_attempt_at), \
         bytes_done = CASE WHEN $3 = 'completed' OR $6 > bytes_total THEN bytes_total \
             WHEN $6 > bytes_done THEN $6 ELSE bytes_done END, \
         error_class = CASE WHEN $3 = 'completed' THEN NULL ELSE coalesce($7, error_class) END, \
         error_text = CASE WHEN $3 = 'completed' THEN NULL ELSE coalesce($8, error_text) END, \
         finished_at = CASE WHEN $3 IN ('completed', 'failed') THEN now_us() END, updated_at = now_us(), \
         changed_by = $9, change_reason = $10 WHERE id = $1 AND fence = $2",
        Kind::of(row.work).table()
    );
    let (class, error) = match &next.error {
        Some((class, text)) => (Some(class.as_str()), Some(text.as_str())),
        None => (None, None),
    };
    let args = args![
        row.work.number(),
        row.fence,
        next.status.as_str(),
        next.retry_count,
        next.next_attempt_at,
        i64::try_from(outcome.bytes_done).unwrap_or(i64::MAX),
        class,
        error,
        &outcome.worker,
        &next.reason
    ];
    if tx.execute(text, args).await? != 1 {
        return Err(StoreError::Stale { work: row.work, fence: row.fence });
    }
    Ok(())
}

/// Whether bytes came through, as far as an ending tells.
const fn news(ending: &Ending) -> LinkNews {
    match ending {
        Ending::Completed => LinkNews::Works,
        Ending::Failed { class, .. } if class.policy().blames_link => LinkNews::Fails,
        // The far end answered.
        Ending::Failed {
            class: ErrorClass::RemoteBusy | ErrorClass::NoSpace | ErrorClass::DestinationDiffers, ..
        } => LinkNews::Works,
        Ending::Failed { .. } | Ending::HandedBack { .. } => LinkNews::Nothing,
    }
}

/// Moves the breaker. `true` when it closed: a hint was left for what had waited behind it.
async fn tell_breaker(
    tx: &mut Tx,
    route: RouteId,
    row: &WorkRow,
    outcome: &AttemptOutcome,
    now: Timestamp,
    random: u32,
) -> Result<bool, StoreError> {
    const LOOK: &str = "SELECT breaker_state, breaker_failures, breaker_trips, breaker_until \
         FROM data_transfer_route WHERE id = $1";
    let news = news(&outcome.ending);
    let read = |found: Option<super::sql::Row>| -> Result<Breaker, StoreError> {
        let found = found.ok_or_else(|| StoreError::Corrupt(format!("{} has no route", row.work)))?;
        let count = |name: &str| found.size(name).map(|v| u32::try_from(v).unwrap_or(u32::MAX));
        Ok(Breaker {
            state: found.word("breaker_state")?,
            failures: count("breaker_failures")?,
            trips: count("breaker_trips")?,
            until: found.opt_time("breaker_until")?,
        })
    };
    // Most outcomes change nothing, and should not wait for each other to find that out.
    let before = read(tx.row(LOOK, args![route]).await?)?;
    if before.after(news, now, random) == before {
        return Ok(false);
    }
    let locked = super::workers::with_lock(tx, LOOK);
    let before = read(tx.row(locked, args![route]).await?)?;
    let after = before.after(news, now, random);
    if after == before {
        return Ok(false);
    }
    let why = format!("{} attempt {}: {}", row.work, row.attempt, word(&outcome.ending));
    tx.execute(
        "UPDATE data_transfer_route SET breaker_state = $2, breaker_failures = $3, breaker_trips = $4, \
         breaker_until = $5, updated_at = now_us(), changed_by = $6, change_reason = $7 WHERE id = $1",
        args![route, after.state.as_str(), after.failures, after.trips, after.until, &outcome.worker, why],
    )
    .await?;
    let closed = before.state != after.state && after == Breaker::CLOSED;
    if closed {
        row.hint(tx).await?;
    }
    Ok(closed)
}
