-- Outcomes on a worker's own disk that the database has not taken yet, for operators.
ALTER TABLE worker ADD COLUMN spooled BIGINT NOT NULL DEFAULT 0 CHECK (spooled >= 0);
