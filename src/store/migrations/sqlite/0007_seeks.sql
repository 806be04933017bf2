-- PostgreSQL's alone: which columns an index leads with. Both databases have the same versions.
SELECT 1 WHERE FALSE;
