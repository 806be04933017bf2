-- Triggers of whole statements, which PostgreSQL writes its histories with from this version on: SQLite has none, and a
-- trigger of a row costs it next to nothing. Both databases have the same versions.
SELECT 1 WHERE FALSE;
