-- What the archive manager plans by, what counts as evidence in an archive, and how a copy that went bad is mended.
-- The module doc of `store` says why each rule holds; the PostgreSQL sibling says the same.

-- ---- which archives a package must reach

-- SQLite changes no CHECK and no default in place; this is the way that its manual names for it (`ALTER TABLE`, section
-- 7). What is stored stays as it is, and the statements below change the schema's cookie for all connections.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql,
    'policy TEXT NOT NULL DEFAULT ''transfer_only'' CHECK (policy IN (''transfer_only'', ''one_archive'', ''every_archive''))',
    'policy TEXT NOT NULL DEFAULT ''site_archives'' CHECK (policy IN (''transfer_only'', ''site_archives'', ''one_archive'', ''every_archive''))')
WHERE type = 'table' AND name IN ('raw_data_package', 'intake');
PRAGMA writable_schema = RESET;

ALTER TABLE data_location ADD COLUMN archive_group TEXT CHECK (length(archive_group) BETWEEN 1 AND 40);
ALTER TABLE data_location ADD COLUMN archive_copies INTEGER NOT NULL DEFAULT 1 CHECK (archive_copies BETWEEN 1 AND 100);
ALTER TABLE data_location ADD COLUMN cached_read_back_counts INTEGER NOT NULL DEFAULT 0
    CHECK (cached_read_back_counts IN (0, 1));
ALTER TABLE data_location ADD COLUMN on_tape_readback TEXT NOT NULL DEFAULT 'full'
    CHECK (on_tape_readback IN ('full', 'checksum', 'none'));

CREATE TRIGGER archive_requirement_no_update BEFORE UPDATE ON archive_requirement
BEGIN SELECT RAISE(ABORT, 'archive_requirement: rows are only inserted'); END;
CREATE TRIGGER archive_requirement_no_delete BEFORE DELETE ON archive_requirement
BEGIN SELECT RAISE(ABORT, 'archive_requirement: rows are only inserted'); END;
CREATE TRIGGER archive_requirement_archived BEFORE INSERT ON archive_requirement
WHEN EXISTS (SELECT 1 FROM raw_data_package p WHERE p.id = NEW.package_id AND p.state = 'archived')
    AND NOT EXISTS (SELECT 1 FROM archive_requirement q
        WHERE q.package_id = NEW.package_id AND q.location_id = NEW.location_id)
BEGIN SELECT RAISE(ABORT, 'archive_requirement: an archived package gets no further one'); END;

-- ---- metadata

CREATE TABLE raw_data_package_metadata (
    package_id INTEGER PRIMARY KEY REFERENCES raw_data_package (id),
    -- One object of keys and values.
    metadata TEXT NOT NULL CHECK (length(metadata) <= 1048576 AND json_valid(metadata) AND json_type(metadata) = 'object'),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
) STRICT;
-- NULL by name: to older versions of SQLite, in which other programs insert, NULL is no valid JSON.
ALTER TABLE intake ADD COLUMN metadata TEXT CHECK (metadata IS NULL
    OR (length(metadata) <= 1048576 AND json_valid(metadata) AND json_type(metadata) = 'object'));

-- ---- work that replaces

-- 0 is the first way into the archive; n is the nth repair, which replaces what lies there.
ALTER TABLE long_term_archive_transfer ADD COLUMN repair INTEGER NOT NULL DEFAULT 0 CHECK (repair >= 0);
DROP INDEX long_term_archive_transfer_live;
CREATE UNIQUE INDEX long_term_archive_transfer_live ON long_term_archive_transfer (package_id, destination_location_id)
    WHERE status IN ('pending', 'scheduled', 'in_progress');
-- A second manager's copy of a plan ends here, also when the first one's work is over by then.
CREATE UNIQUE INDEX long_term_archive_transfer_once ON long_term_archive_transfer
    (package_id, destination_location_id, repair) WHERE status <> 'failed';
CREATE INDEX long_term_archive_transfer_of ON long_term_archive_transfer (package_id, destination_location_id, id);
-- What is on its way to a place, for its room.
CREATE INDEX long_term_archive_transfer_bound_for ON long_term_archive_transfer (destination_location_id, bytes_total)
    WHERE status IN ('pending', 'scheduled', 'in_progress');

DROP TRIGGER long_term_archive_transfer_stays;
CREATE TRIGGER long_term_archive_transfer_stays BEFORE UPDATE ON long_term_archive_transfer
WHEN NEW.id <> OLD.id OR NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
    OR NEW.destination_location_id <> OLD.destination_location_id OR NEW.queue_location_id <> OLD.queue_location_id
    OR NEW.bytes_total <> OLD.bytes_total OR NEW.repair <> OLD.repair
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: where it goes cannot change'); END;

-- ---- what a manager has not looked at yet, and whose evidence is oldest

-- When the archive manager looks at it next; NULL once nothing is left to do. 0 is at once.
ALTER TABLE physical_copy ADD COLUMN archive_due_at INTEGER DEFAULT 0;
CREATE INDEX physical_copy_archive_due ON physical_copy (location_id, archive_due_at, id)
    WHERE archive_due_at IS NOT NULL;
-- When a copy in an archive was last looked at; NULL elsewhere.
ALTER TABLE physical_copy ADD COLUMN checked_at INTEGER;
UPDATE physical_copy SET checked_at = created_at
WHERE location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
CREATE INDEX physical_copy_checked ON physical_copy (location_id, checked_at, id) WHERE checked_at IS NOT NULL;

-- ---- evidence

ALTER TABLE verification_record ADD COLUMN read_how TEXT
    CHECK (read_how IN ('direct', 'dropped', 'cached', 'remote_get', 'command', 'vouched'))
    CHECK (read_how IS NULL OR (read_how = 'cached') = cached);
ALTER TABLE verification_record ADD COLUMN unread_reason TEXT
    CHECK (unread_reason IS NULL OR (length(unread_reason) > 0 AND read_how IS 'vouched'));

-- Records that prove what they say: equal, and in an archive a reading of what rests there, as the location's settings
-- allow it, that no later one contradicts.
CREATE VIEW proof AS
SELECT v.package_id, v.location_id, v.data_transfer_id, v.long_term_archive_transfer_id, v.fence, v.method
FROM verification_record v
    JOIN package_digest d ON d.package_id = v.package_id AND d.algorithm = v.algorithm
    JOIN raw_data_package p ON p.id = v.package_id
    JOIN data_location l ON l.id = v.location_id
WHERE v.found_digest = d.digest AND v.expected_digest = d.digest
    AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes
    AND (l.location_type <> 'long_term_archive' OR (
        (v.method = 'read_back' OR (v.method = 'scrub' AND v.unread_reason IS NULL))
        AND (NOT v.cached OR l.cached_read_back_counts)
        AND (v.read_how IS NOT 'vouched' OR l.on_tape_readback = 'none'
            OR (l.on_tape_readback = 'checksum' AND v.unread_reason IS NULL))
        AND NOT EXISTS (SELECT 1 FROM verification_record n
            WHERE n.package_id = v.package_id AND n.location_id = v.location_id AND n.id > v.id
                AND (n.found_digest <> n.expected_digest OR n.found_size_bytes <> n.expected_size_bytes))));

DROP TRIGGER physical_copy_proof_insert;
CREATE TRIGGER physical_copy_proof_insert BEFORE INSERT ON physical_copy
WHEN (NEW.verification = 'verified' AND NOT EXISTS (
        SELECT 1 FROM proof v WHERE v.package_id = NEW.package_id AND v.location_id = NEW.location_id))
    OR (NEW.verification = 'registered' AND NEW.location_id IS NOT
        (SELECT origin_location_id FROM raw_data_package WHERE id = NEW.package_id))
    OR NEW.size_bytes IS NOT (SELECT size_bytes FROM raw_data_package WHERE id = NEW.package_id)
BEGIN SELECT RAISE(ABORT, 'physical_copy: verified needs an equal verification_record, registered is the origin alone'); END;

DROP TRIGGER physical_copy_proof_update;
CREATE TRIGGER physical_copy_proof_update BEFORE UPDATE ON physical_copy
WHEN (NEW.verification = 'verified' AND OLD.verification <> 'verified' AND NOT EXISTS (
        SELECT 1 FROM proof v WHERE v.package_id = NEW.package_id AND v.location_id = NEW.location_id))
    OR (NEW.verification = 'registered' AND OLD.verification <> 'registered') OR NEW.size_bytes <> OLD.size_bytes
BEGIN SELECT RAISE(ABORT, 'physical_copy: verified needs an equal verification_record, registered is the origin alone'); END;

DROP TRIGGER long_term_archive_transfer_proof;
CREATE TRIGGER long_term_archive_transfer_proof BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND NOT (
    EXISTS (SELECT 1 FROM proof v WHERE v.package_id = NEW.package_id AND v.location_id = NEW.destination_location_id
        AND v.long_term_archive_transfer_id = NEW.id AND v.fence = NEW.fence AND v.method = 'read_back')
    AND EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = NEW.package_id
        AND c.location_id = NEW.destination_location_id AND c.status = 'present' AND c.verification = 'verified'))
BEGIN SELECT RAISE(ABORT,
    'long_term_archive_transfer: completed needs a read-back of this attempt that counts and a verified copy'); END;

DROP TRIGGER raw_data_package_proof;
CREATE TRIGGER raw_data_package_proof BEFORE UPDATE OF state ON raw_data_package
WHEN NEW.state = 'archived' AND OLD.state <> 'archived' AND (
    NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id)
    OR EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id AND NOT (
        EXISTS (SELECT 1 FROM physical_copy c JOIN data_location l ON l.id = c.location_id
            WHERE c.package_id = NEW.id AND c.location_id = q.location_id AND c.status = 'present'
                AND c.verification = 'verified' AND l.location_type = 'long_term_archive')
        AND EXISTS (SELECT 1 FROM proof v WHERE v.package_id = NEW.id AND v.location_id = q.location_id))))
BEGIN SELECT RAISE(ABORT, 'raw_data_package: archived needs a verified copy in every archive that is required'); END;

-- ---- what follows from a change of a copy

CREATE TRIGGER physical_copy_archived AFTER INSERT ON physical_copy
WHEN NEW.checked_at IS NULL AND EXISTS (
    SELECT 1 FROM data_location l WHERE l.id = NEW.location_id AND l.location_type = 'long_term_archive')
BEGIN UPDATE physical_copy SET checked_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER) WHERE id = NEW.id; END;

CREATE TRIGGER physical_copy_to_look_at AFTER UPDATE OF status, verification ON physical_copy
WHEN NEW.status <> OLD.status OR NEW.verification <> OLD.verification
BEGIN
    UPDATE physical_copy SET archive_due_at = 0, checked_at = CASE
        WHEN checked_at IS NOT NULL AND verification = 'verified' THEN CAST(unixepoch('subsec') * 1000000 AS INTEGER)
        ELSE checked_at END
    WHERE id = NEW.id;
END;

-- A package is archived no longer than all the copies that its policy asks for are verified.
CREATE TRIGGER physical_copy_lost AFTER UPDATE OF status, verification ON physical_copy
WHEN OLD.status = 'present' AND OLD.verification = 'verified'
    AND NOT (NEW.status = 'present' AND NEW.verification = 'verified')
    AND EXISTS (SELECT 1 FROM archive_requirement q
        WHERE q.package_id = NEW.package_id AND q.location_id = NEW.location_id)
BEGIN
    UPDATE raw_data_package SET state = 'failed', updated_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER),
        changed_by = NEW.changed_by, change_reason = 'its copy in '
            || (SELECT s.short_name || '/' || l.name FROM data_location l JOIN site s ON s.id = l.site_id
                WHERE l.id = NEW.location_id)
            || ' is ' || iif(NEW.status = 'present', NEW.verification, NEW.status) || ': ' || NEW.change_reason
    WHERE id = NEW.package_id AND state = 'archived';
END;

CREATE TRIGGER physical_copy_mended AFTER UPDATE OF status, verification ON physical_copy
WHEN NEW.status = 'present' AND NEW.verification = 'verified'
    AND NOT (OLD.status = 'present' AND OLD.verification = 'verified')
    AND EXISTS (SELECT 1 FROM archive_requirement q
        WHERE q.package_id = NEW.package_id AND q.location_id = NEW.location_id)
    AND NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.package_id AND NOT (
        EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = q.package_id AND c.location_id = q.location_id
            AND c.status = 'present' AND c.verification = 'verified')
        AND EXISTS (SELECT 1 FROM proof v WHERE v.package_id = q.package_id AND v.location_id = q.location_id)))
BEGIN
    UPDATE raw_data_package SET state = 'archived', updated_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER),
        changed_by = NEW.changed_by, change_reason = 'every archive that is required holds it again'
    WHERE id = NEW.package_id AND state = 'failed';
END;

-- The hops of a bundle, and what failed of a package's ways into archives: looked up with every bundle and every end.
CREATE INDEX data_transfer_of_bundle ON data_transfer (data_transfer_package_id, hop);
CREATE INDEX long_term_archive_transfer_failed_of ON long_term_archive_transfer (package_id, destination_location_id)
    WHERE status = 'failed';

-- Copies are looked up by package and location. An index that holds the location and the status looks as good to a
-- database, and would be walked over all copies that are present there.
DROP INDEX physical_copy_by_location;
CREATE INDEX physical_copy_of_location ON physical_copy (location_id, id);

-- What an older program brought into an archive was not read back there: it is looked at, and archived anew.
UPDATE physical_copy SET verification = 'suspect', updated_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER), changed_by = 'migration',
    change_reason = 'no reading of the archive proves it'
WHERE verification = 'verified' AND NOT EXISTS (SELECT 1 FROM proof v
        WHERE v.package_id = physical_copy.package_id AND v.location_id = physical_copy.location_id)
    AND location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
UPDATE transfer_request SET withdrawn = 1 WHERE data_transfer_package_id IS NULL AND NOT withdrawn
    AND destination_location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
UPDATE data_transfer SET status = 'failed', error_class = 'configuration',
    error_text = 'a transfer ends in a buffer; the archives get it from there', finished_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER),
    updated_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER), changed_by = 'migration', change_reason = 'its destination is an archive'
WHERE status IN ('pending', 'scheduled')
    AND destination_location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');

-- The records of one piece of work, for `show`.
CREATE INDEX verification_record_of_transfer ON verification_record (data_transfer_id, id)
    WHERE data_transfer_id IS NOT NULL;
CREATE INDEX verification_record_of_archive ON verification_record (long_term_archive_transfer_id, id)
    WHERE long_term_archive_transfer_id IS NOT NULL;
