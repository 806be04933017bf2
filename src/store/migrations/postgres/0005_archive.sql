-- What the archive manager plans by, what counts as evidence in an archive, and how a copy that went bad is mended.
-- The module doc of `store` says why each rule holds; the SQLite sibling says the same.

-- ---- which archives a package must reach

ALTER TABLE raw_data_package DROP CONSTRAINT raw_data_package_policy_check, ALTER COLUMN policy SET DEFAULT 'site_archives',
    ADD CONSTRAINT raw_data_package_policy_check
        CHECK (policy IN ('transfer_only', 'site_archives', 'one_archive', 'every_archive'));
ALTER TABLE intake DROP CONSTRAINT intake_policy_check, ALTER COLUMN policy SET DEFAULT 'site_archives',
    ADD CONSTRAINT intake_policy_check
        CHECK (policy IN ('transfer_only', 'site_archives', 'one_archive', 'every_archive'));

ALTER TABLE data_location
    ADD COLUMN archive_group TEXT CHECK (length(archive_group) BETWEEN 1 AND 40),
    ADD COLUMN archive_copies BIGINT NOT NULL DEFAULT 1 CHECK (archive_copies BETWEEN 1 AND 100),
    ADD COLUMN cached_read_back_counts BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN on_tape_readback TEXT NOT NULL DEFAULT 'full' CHECK (on_tape_readback IN ('full', 'checksum', 'none'));

CREATE FUNCTION archive_requirement_birth() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM raw_data_package p WHERE p.id = NEW.package_id AND p.state = 'archived')
        AND NOT EXISTS (SELECT 1 FROM archive_requirement q
            WHERE q.package_id = NEW.package_id AND q.location_id = NEW.location_id) THEN
        PERFORM refuse('archive_requirement: an archived package gets no further one');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER archive_requirement_birth BEFORE INSERT ON archive_requirement
    FOR EACH ROW EXECUTE FUNCTION archive_requirement_birth();
CREATE TRIGGER archive_requirement_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON archive_requirement
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are only inserted');

-- ---- metadata

CREATE TABLE raw_data_package_metadata (
    package_id BIGINT PRIMARY KEY REFERENCES raw_data_package (id),
    -- One object of keys and values.
    metadata TEXT NOT NULL CHECK (length(metadata) <= 1048576 AND jsonb_typeof(metadata::jsonb) = 'object'),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us()
);
ALTER TABLE intake ADD COLUMN metadata TEXT
    CHECK (length(metadata) <= 1048576 AND jsonb_typeof(metadata::jsonb) = 'object');

-- ---- work that replaces

-- 0 is the first way into the archive; n is the nth repair, which replaces what lies there.
ALTER TABLE long_term_archive_transfer ADD COLUMN repair BIGINT NOT NULL DEFAULT 0 CHECK (repair >= 0);
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

-- ---- what a manager has not looked at yet, and whose evidence is oldest

ALTER TABLE physical_copy
    -- When the archive manager looks at it next; NULL once nothing is left to do. 0 is at once.
    ADD COLUMN archive_due_at BIGINT DEFAULT 0,
    -- When a copy in an archive was last looked at; NULL elsewhere.
    ADD COLUMN checked_at BIGINT;
CREATE INDEX physical_copy_archive_due ON physical_copy (location_id, archive_due_at, id)
    WHERE archive_due_at IS NOT NULL;
UPDATE physical_copy SET checked_at = created_at
WHERE location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
CREATE INDEX physical_copy_checked ON physical_copy (location_id, checked_at, id) WHERE checked_at IS NOT NULL;

-- ---- evidence

ALTER TABLE verification_record
    ADD COLUMN read_how TEXT CHECK (read_how IN ('direct', 'dropped', 'cached', 'remote_get', 'command', 'vouched')),
    ADD COLUMN unread_reason TEXT,
    ADD CHECK (read_how IS NULL OR (read_how = 'cached') = cached),
    ADD CHECK (unread_reason IS NULL OR (length(unread_reason) > 0 AND read_how IS NOT DISTINCT FROM 'vouched'));

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
        AND (v.read_how IS DISTINCT FROM 'vouched' OR l.on_tape_readback = 'none'
            OR (l.on_tape_readback = 'checksum' AND v.unread_reason IS NULL))
        AND NOT EXISTS (SELECT 1 FROM verification_record n
            WHERE n.package_id = v.package_id AND n.location_id = v.location_id AND n.id > v.id
                AND (n.found_digest <> n.expected_digest OR n.found_size_bytes <> n.expected_size_bytes))));

-- In PL/pgSQL, which keeps their plans for the session: one of the language SQL with a path of its own is planned anew for
-- every row that is proven.
CREATE OR REPLACE FUNCTION equal_record(package BIGINT, location BIGINT) RETURNS boolean LANGUAGE plpgsql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM proof v WHERE v.package_id = package AND v.location_id = location);
END $$;

CREATE OR REPLACE FUNCTION verified_copy(package BIGINT, location BIGINT) RETURNS boolean LANGUAGE plpgsql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    RETURN equal_record(package, location) AND EXISTS (
        SELECT 1 FROM physical_copy c WHERE c.package_id = package AND c.location_id = location
            AND c.status = 'present' AND c.verification = 'verified');
END $$;

CREATE OR REPLACE FUNCTION proven_by(package BIGINT, location BIGINT, transfer BIGINT, archive_transfer BIGINT,
        attempt_fence BIGINT)
    RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1 FROM verification_record v
        JOIN package_digest d ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        JOIN raw_data_package p ON p.id = v.package_id
        WHERE v.package_id = package AND v.location_id = location AND v.fence = attempt_fence
            AND (v.data_transfer_id = transfer OR v.long_term_archive_transfer_id = archive_transfer)
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes);
END $$;

-- Whether a reading of this attempt says that the package's registered bytes, all of them, rest there.
CREATE FUNCTION read_back_by(package BIGINT, location BIGINT, archive_transfer BIGINT, attempt_fence BIGINT)
    RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM proof v WHERE v.package_id = package AND v.location_id = location
        AND v.long_term_archive_transfer_id = archive_transfer AND v.fence = attempt_fence AND v.method = 'read_back');
END $$;

CREATE OR REPLACE FUNCTION long_term_archive_transfer_change() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_location_id <> OLD.destination_location_id
        OR NEW.queue_location_id <> OLD.queue_location_id OR NEW.bytes_total <> OLD.bytes_total
        OR NEW.repair <> OLD.repair THEN
        PERFORM refuse('long_term_archive_transfer: where it goes cannot change');
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt THEN
        PERFORM work_change('long_term_archive_transfer', OLD.status, NEW.status, OLD.fence, NEW.fence, OLD.attempt,
            NEW.attempt,
            EXISTS (SELECT 1 FROM attempt a WHERE a.long_term_archive_transfer_id = OLD.id AND a.fence = OLD.fence));
    END IF;
    IF NEW.status = 'completed' AND OLD.status <> 'completed'
        AND NOT (verified_copy(NEW.package_id, NEW.destination_location_id)
            AND read_back_by(NEW.package_id, NEW.destination_location_id, NEW.id, NEW.fence)) THEN
        PERFORM refuse('long_term_archive_transfer: completed needs a read-back of this attempt that counts and a verified copy');
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;

-- ---- what follows from a change of a copy

CREATE OR REPLACE FUNCTION physical_copy_proof() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.package_id <> OLD.package_id OR NEW.location_id <> OLD.location_id) THEN
        PERFORM refuse('physical_copy: package and location cannot change');
    END IF;
    IF (NEW.verification = 'verified' AND (TG_OP = 'INSERT' OR OLD.verification <> 'verified')
            AND NOT equal_record(NEW.package_id, NEW.location_id))
        OR (NEW.verification = 'registered' AND (TG_OP = 'INSERT' OR OLD.verification <> 'registered')
            AND (TG_OP = 'UPDATE' OR NEW.location_id IS DISTINCT FROM
                (SELECT origin_location_id FROM raw_data_package WHERE id = NEW.package_id)))
        OR NEW.size_bytes IS DISTINCT FROM (SELECT size_bytes FROM raw_data_package WHERE id = NEW.package_id) THEN
        PERFORM refuse('physical_copy: verified needs an equal verification_record, registered is the origin alone');
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NEW.checked_at IS NULL AND EXISTS (SELECT 1 FROM data_location l
            WHERE l.id = NEW.location_id AND l.location_type = 'long_term_archive') THEN
            NEW.checked_at := now_us();
        END IF;
    ELSIF NEW.status <> OLD.status OR NEW.verification <> OLD.verification THEN
        NEW.archive_due_at := 0;
        IF NEW.checked_at IS NOT NULL AND NEW.verification = 'verified' THEN
            NEW.checked_at := now_us();
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION location_name(place BIGINT) RETURNS TEXT LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT s.short_name || '/' || l.name FROM data_location l JOIN site s ON s.id = l.site_id WHERE l.id = place
$$;

-- A package is archived no longer than all the copies that its policy asks for are verified.
CREATE FUNCTION physical_copy_kept() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    was BOOLEAN := OLD.status = 'present' AND OLD.verification = 'verified';
    holds BOOLEAN := NEW.status = 'present' AND NEW.verification = 'verified';
BEGIN
    IF was = holds OR NOT EXISTS (SELECT 1 FROM archive_requirement q
        WHERE q.package_id = NEW.package_id AND q.location_id = NEW.location_id) THEN
        RETURN NULL;
    END IF;
    -- First the package, and then the look: two copies that change at once would else each miss the other.
    PERFORM 1 FROM raw_data_package WHERE id = NEW.package_id FOR NO KEY UPDATE;
    IF was THEN
        UPDATE raw_data_package SET state = 'failed', updated_at = now_us(), changed_by = NEW.changed_by,
            change_reason = 'its copy in ' || location_name(NEW.location_id) || ' is '
                || CASE NEW.status WHEN 'present' THEN NEW.verification ELSE NEW.status END || ': ' || NEW.change_reason
        WHERE id = NEW.package_id AND state = 'archived';
    ELSIF NOT EXISTS (SELECT 1 FROM archive_requirement q
        WHERE q.package_id = NEW.package_id AND NOT verified_copy(q.package_id, q.location_id)) THEN
        UPDATE raw_data_package SET state = 'archived', updated_at = now_us(), changed_by = NEW.changed_by,
            change_reason = 'every archive that is required holds it again'
        WHERE id = NEW.package_id AND state = 'failed';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER physical_copy_kept AFTER UPDATE ON physical_copy
    FOR EACH ROW WHEN (NEW.status <> OLD.status OR NEW.verification <> OLD.verification)
    EXECUTE FUNCTION physical_copy_kept();
-- The archive manager looks at what went bad at once.
CREATE TRIGGER physical_copy_bad_wakes AFTER UPDATE ON physical_copy FOR EACH ROW
    WHEN (NEW.verification <> OLD.verification AND NEW.verification IN ('suspect', 'corrupt'))
    EXECUTE FUNCTION wake('pending');

-- The hops of a bundle, and what failed of a package's ways into archives: looked up with every bundle and every end.
CREATE INDEX data_transfer_of_bundle ON data_transfer (data_transfer_package_id, hop);
CREATE INDEX long_term_archive_transfer_failed_of ON long_term_archive_transfer (package_id, destination_location_id)
    WHERE status = 'failed';

-- Copies are looked up by package and location. An index that holds the location and the status looks as good to a
-- database, and would be walked over all copies that are present there.
DROP INDEX physical_copy_by_location;
CREATE INDEX physical_copy_of_location ON physical_copy (location_id, id);

-- What an older program brought into an archive was not read back there: it is looked at, and archived anew.
UPDATE physical_copy SET verification = 'suspect', updated_at = now_us(), changed_by = 'migration',
    change_reason = 'no reading of the archive proves it'
WHERE verification = 'verified' AND NOT EXISTS (SELECT 1 FROM proof v
        WHERE v.package_id = physical_copy.package_id AND v.location_id = physical_copy.location_id)
    AND location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
UPDATE transfer_request SET withdrawn = TRUE WHERE data_transfer_package_id IS NULL AND NOT withdrawn
    AND destination_location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');
UPDATE data_transfer SET status = 'failed', error_class = 'configuration',
    error_text = 'a transfer ends in a buffer; the archives get it from there', finished_at = now_us(),
    updated_at = now_us(), changed_by = 'migration', change_reason = 'its destination is an archive'
WHERE status IN ('pending', 'scheduled')
    AND destination_location_id IN (SELECT id FROM data_location WHERE location_type = 'long_term_archive');

-- The records of one piece of work, for `show`.
CREATE INDEX verification_record_of_transfer ON verification_record (data_transfer_id, id)
    WHERE data_transfer_id IS NOT NULL;
CREATE INDEX verification_record_of_archive ON verification_record (long_term_archive_transfer_id, id)
    WHERE long_term_archive_transfer_id IS NOT NULL;
