-- A partial index whose first column is what its condition says already: PostgreSQL drops the condition from the search, as
-- the index implies it, has nothing to seek the first column by, and walks over the whole index to compare the second one.
-- SQLite needs that column to choose the index, and seeks by it.
DROP INDEX data_transfer_pending;
CREATE INDEX data_transfer_pending ON data_transfer (lane, next_attempt_at, id) WHERE status = 'pending' AND ready;
DROP INDEX data_transfer_due;
CREATE INDEX data_transfer_due ON data_transfer (next_attempt_at) WHERE status = 'pending' AND ready;
DROP INDEX data_transfer_unsettled;
CREATE INDEX data_transfer_unsettled ON data_transfer (finished_at, id)
    WHERE status IN ('completed', 'failed') AND NOT settled;
DROP INDEX data_transfer_no_space;
CREATE INDEX data_transfer_no_space ON data_transfer (destination_location_id, next_attempt_at, id)
    WHERE status = 'pending' AND error_class = 'no_space';
DROP INDEX long_term_archive_transfer_pending;
CREATE INDEX long_term_archive_transfer_pending ON long_term_archive_transfer (lane, next_attempt_at, id)
    WHERE status = 'pending';
DROP INDEX long_term_archive_transfer_due;
CREATE INDEX long_term_archive_transfer_due ON long_term_archive_transfer (next_attempt_at) WHERE status = 'pending';
DROP INDEX long_term_archive_transfer_unsettled;
CREATE INDEX long_term_archive_transfer_unsettled ON long_term_archive_transfer (finished_at, id)
    WHERE status IN ('completed', 'failed') AND NOT settled;
