//! What every archive promises: one suite over all of them, and what only one kind can be asked.
//!
//! A new kind of archive needs a [`Bed`] and one line of `archives!`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../harness/mod.rs"]
mod harness;

mod bed;
mod disk;
mod s3;
mod suite;
mod tape;

use bed::Bed;

/// Every case of the suite as a test, for each kind of archive.
macro_rules! archives {
    ($($kind:ident: $bed:expr),* $(,)?) => {
        $(mod $kind {
            use super::*;
            cases!($bed;
                a_package_reads_back_as_it_was_registered,
                a_tree_of_a_thousand_odd_entries_reads_back,
                empty_packages_rest_too,
                a_second_put_finds_the_first,
                other_bytes_at_the_same_path_lie_beside,
                equal_bytes_at_two_paths_are_two_packages,
                a_put_that_was_cut_off_is_done_again,
                a_source_that_changed_is_refused,
                a_source_that_changes_meanwhile_is_found,
                a_missing_source_is_no_package,
                what_does_not_rest_is_missing,
                corruption_below_is_read_back,
                a_corrupt_package_is_replaced_and_then_forgotten,
                a_replacement_that_nobody_heard_of_is_found,
                a_corrupt_package_is_not_copied_out,
                a_package_is_copied_out_as_it_was,
                a_read_only_tree_is_copied_out_by_any_user,
                sidecars_are_listed_in_order_and_read,
                a_sidecar_is_replaced_whole,
                what_is_no_sidecar_is_refused,
                a_digest_that_nothing_reads_is_refused,
                odd_names_rest_and_come_back,
                progress_counts_every_byte_once,
                a_cancelled_reading_ends,
            );
        })*
    };
}

macro_rules! cases {
    ($bed:expr; $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let Some(bed) = ($bed)() else { return };
            suite::$case(&*bed).await;
        })*
    };
}

archives! {
    on_disk: || Some(Box::new(disk::DiskBed::new()) as Box<dyn Bed>),
    on_s3: || s3::S3Bed::new().map(|bed| Box::new(bed) as Box<dyn Bed>),
    on_tape: || Some(Box::new(tape::TapeBed::new()) as Box<dyn Bed>),
}
