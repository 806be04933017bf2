-- A lease is lost when a manager saw its row unchanged for the lease's own length on its own clock, so that no setting
-- of the server's clock ends or prolongs one. A row that is renewed counts, because a clock may stand still.
ALTER TABLE data_transfer
    ADD COLUMN lease_us BIGINT NOT NULL DEFAULT 10000000 CHECK (lease_us > 0),
    ADD COLUMN renewals BIGINT NOT NULL DEFAULT 0 CHECK (renewals >= 0);
ALTER TABLE long_term_archive_transfer
    ADD COLUMN lease_us BIGINT NOT NULL DEFAULT 10000000 CHECK (lease_us > 0),
    ADD COLUMN renewals BIGINT NOT NULL DEFAULT 0 CHECK (renewals >= 0);
ALTER TABLE worker ADD COLUMN heartbeats BIGINT NOT NULL DEFAULT 0 CHECK (heartbeats >= 0);
