-- The same as on PostgreSQL. Here leases go by the boot clock, and the counts tell a sweep whether a row is still the
-- one that it saw.
ALTER TABLE data_transfer ADD COLUMN lease_us INTEGER NOT NULL DEFAULT 10000000 CHECK (lease_us > 0);
ALTER TABLE data_transfer ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0 CHECK (renewals >= 0);
ALTER TABLE long_term_archive_transfer ADD COLUMN lease_us INTEGER NOT NULL DEFAULT 10000000 CHECK (lease_us > 0);
ALTER TABLE long_term_archive_transfer ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0 CHECK (renewals >= 0);
ALTER TABLE worker ADD COLUMN heartbeats INTEGER NOT NULL DEFAULT 0 CHECK (heartbeats >= 0);
