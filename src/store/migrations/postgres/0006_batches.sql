-- The daemons' statements touch many rows at once: what is written about them is written once for a statement, and what
-- has to hold for a row is asked in as few questions as it takes. In PL/pgSQL a condition that holds a query costs an
-- execution of its own, whatever stands before it, and so does every call by PERFORM.

-- ---- histories: one statement each, however many rows moved

-- A daemon's connection joins by nested loops alone; these two sides are lists without an index.

CREATE FUNCTION work_born() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, fence, reason)
    SELECT TG_TABLE_NAME, n.id, n.status, n.changed_by, n.fence, n.change_reason FROM born n ORDER BY n.id;
    RETURN NULL;
END $$;

CREATE FUNCTION work_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = ccat_xfer, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
DECLARE
    done BIGINT[];
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, fence, reason)
    SELECT TG_TABLE_NAME, n.id, o.status, n.status, n.changed_by, n.fence, n.change_reason
    FROM moved n JOIN stood o ON o.id = n.id
    WHERE n.status <> o.status OR n.fence <> o.fence OR n.cancel_requested <> o.cancel_requested ORDER BY n.id;
    IF TG_TABLE_NAME = 'data_transfer' THEN
        done := ARRAY(SELECT n.id FROM moved n JOIN stood o ON o.id = n.id
            WHERE n.status = 'completed' AND o.status <> 'completed');
        IF cardinality(done) > 0 THEN
            IF EXISTS (SELECT 1 FROM data_transfer t WHERE t.waits_for = ANY (done) AND NOT t.ready) THEN
                UPDATE data_transfer SET ready = TRUE, next_attempt_at = now_us(), updated_at = now_us()
                WHERE waits_for = ANY (done) AND NOT ready;
            END IF;
        END IF;
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER data_transfer_moved ON data_transfer;
DROP TRIGGER long_term_archive_transfer_moved ON long_term_archive_transfer;
DROP FUNCTION data_transfer_moved();
CREATE TRIGGER data_transfer_born AFTER INSERT ON data_transfer
    REFERENCING NEW TABLE AS born FOR EACH STATEMENT EXECUTE FUNCTION work_born();
CREATE TRIGGER long_term_archive_transfer_born AFTER INSERT ON long_term_archive_transfer
    REFERENCING NEW TABLE AS born FOR EACH STATEMENT EXECUTE FUNCTION work_born();
CREATE TRIGGER data_transfer_moved AFTER UPDATE ON data_transfer
    REFERENCING OLD TABLE AS stood NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION work_moved();
CREATE TRIGGER long_term_archive_transfer_moved AFTER UPDATE ON long_term_archive_transfer
    REFERENCING OLD TABLE AS stood NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION work_moved();

CREATE FUNCTION raw_data_package_born() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, reason)
    SELECT 'raw_data_package', n.id, n.state, n.changed_by, n.change_reason FROM born n ORDER BY n.id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION raw_data_package_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = ccat_xfer, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason)
    SELECT 'raw_data_package', n.id, o.state, n.state, n.changed_by, n.change_reason
    FROM moved n JOIN stood o ON o.id = n.id WHERE n.state <> o.state ORDER BY n.id;
    RETURN NULL;
END $$;

DROP TRIGGER raw_data_package_moved ON raw_data_package;
CREATE TRIGGER raw_data_package_born AFTER INSERT ON raw_data_package
    REFERENCING NEW TABLE AS born FOR EACH STATEMENT EXECUTE FUNCTION raw_data_package_born();
CREATE TRIGGER raw_data_package_moved AFTER UPDATE ON raw_data_package
    REFERENCING OLD TABLE AS stood NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION raw_data_package_moved();

CREATE FUNCTION physical_copy_born() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, reason)
    SELECT 'physical_copy', n.id, n.status || ' ' || n.verification, n.changed_by, n.change_reason
    FROM born n ORDER BY n.id;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION physical_copy_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = ccat_xfer, pg_temp SET enable_hashjoin = on SET enable_nestloop = off AS $$
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason)
    SELECT 'physical_copy', n.id, o.status || ' ' || o.verification, n.status || ' ' || n.verification, n.changed_by,
        n.change_reason
    FROM moved n JOIN stood o ON o.id = n.id
    WHERE n.status <> o.status OR n.verification <> o.verification ORDER BY n.id;
    RETURN NULL;
END $$;

DROP TRIGGER physical_copy_moved ON physical_copy;
CREATE TRIGGER physical_copy_born AFTER INSERT ON physical_copy
    REFERENCING NEW TABLE AS born FOR EACH STATEMENT EXECUTE FUNCTION physical_copy_born();
CREATE TRIGGER physical_copy_moved AFTER UPDATE ON physical_copy
    REFERENCING OLD TABLE AS stood NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION physical_copy_moved();

-- ---- rules of a row: a question only where its answer matters

CREATE OR REPLACE FUNCTION data_transfer_birth() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    before RECORD;
    bundle RECORD;
BEGIN
    IF NEW.status <> 'pending' OR NEW.fence <> 0 OR NEW.attempt <> 0 OR NEW.retry_count <> 0 OR NEW.bytes_done <> 0
        OR (NEW.waits_for IS NULL AND NOT NEW.ready) THEN
        PERFORM refuse('data_transfer: it starts pending, untried, and ready unless it waits');
    END IF;
    IF NEW.waits_for IS NOT NULL THEN
        SELECT t.hop, t.data_transfer_package_id, t.destination_location_id, t.status INTO before
            FROM data_transfer t WHERE t.id = NEW.waits_for;
        IF NEW.ready IS DISTINCT FROM (before.status IS NOT DISTINCT FROM 'completed') THEN
            PERFORM refuse('data_transfer: it starts pending, untried, and ready unless it waits');
        END IF;
        IF before.hop IS DISTINCT FROM NEW.hop - 1
            OR before.data_transfer_package_id IS DISTINCT FROM NEW.data_transfer_package_id
            OR before.destination_location_id IS DISTINCT FROM NEW.origin_location_id THEN
            PERFORM refuse('data_transfer: it waits for the hop before it, of the same bundle, to where it starts');
        END IF;
    END IF;
    SELECT b.size_bytes, b.package_count, b.origin_location_id, sums.packages, sums.bytes INTO bundle
        FROM data_transfer_package b, LATERAL (
            SELECT count(*) AS packages, sum(p.size_bytes)::bigint AS bytes FROM transfer_request r
            JOIN raw_data_package p ON p.id = r.package_id WHERE r.data_transfer_package_id = b.id) sums
        WHERE b.id = NEW.data_transfer_package_id;
    IF bundle.size_bytes IS DISTINCT FROM NEW.bytes_total OR bundle.size_bytes IS DISTINCT FROM bundle.bytes
        OR bundle.package_count IS DISTINCT FROM bundle.packages
        OR (NEW.hop <= 1 AND bundle.origin_location_id IS DISTINCT FROM NEW.origin_location_id) THEN
        PERFORM refuse('data_transfer: its bundle has other sums, or starts elsewhere');
    END IF;
    RETURN NEW;
END $$;

-- Returns whether a lost lease came back, which the caller judges. One without a value is called by PERFORM alone, which
-- costs an execution of its own.
DROP FUNCTION work_change(TEXT, TEXT, TEXT, BIGINT, BIGINT, BIGINT, BIGINT, BOOLEAN);
CREATE FUNCTION work_change(what TEXT, old_status TEXT, new_status TEXT, old_fence BIGINT, new_fence BIGINT,
    old_attempt BIGINT, new_attempt BIGINT) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF new_status <> old_status AND NOT (
        (old_status = 'pending' AND new_status IN ('scheduled', 'in_progress', 'completed', 'failed'))
        OR (old_status = 'scheduled' AND new_status IN ('pending', 'in_progress', 'completed', 'failed'))
        OR (old_status = 'in_progress' AND new_status IN ('pending', 'scheduled', 'completed', 'failed'))
        OR (old_status = 'failed' AND new_status = 'pending')) THEN
        PERFORM refuse(what || ': illegal change of status');
    END IF;
    IF NOT (new_fence = old_fence
            OR (new_fence = old_fence + 1 AND new_status = 'in_progress' AND old_status IN ('scheduled', 'in_progress')))
        OR new_attempt < old_attempt OR new_attempt > old_attempt + (new_fence - old_fence) THEN
        PERFORM refuse(what || ': only a claim raises the fence, by one');
    END IF;
    IF new_status = 'completed' AND old_status <> 'completed' AND old_fence = 0 THEN
        PERFORM refuse(what || ': nobody has claimed it');
    END IF;
    -- Whether a lost lease came back.
    RETURN old_status IN ('pending', 'scheduled') AND new_status = 'in_progress' AND new_fence = old_fence;
END $$;

CREATE OR REPLACE FUNCTION data_transfer_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    came_back BOOLEAN := FALSE;
BEGIN
    IF NEW.id <> OLD.id OR NEW.data_transfer_package_id <> OLD.data_transfer_package_id OR NEW.route_id <> OLD.route_id
        OR NEW.relay_route_id IS DISTINCT FROM OLD.relay_route_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_location_id <> OLD.destination_location_id
        OR NEW.queue_location_id <> OLD.queue_location_id OR NEW.hop <> OLD.hop
        OR NEW.waits_for IS DISTINCT FROM OLD.waits_for OR NEW.bytes_total <> OLD.bytes_total THEN
        PERFORM refuse('data_transfer: where it goes cannot change');
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt THEN
        came_back := work_change('data_transfer', OLD.status, NEW.status, OLD.fence, NEW.fence, OLD.attempt, NEW.attempt);
    END IF;
    -- A lease that was lost may come back while nobody has claimed the row; an attempt that has ended may not.
    IF came_back THEN
        IF OLD.fence = 0 OR EXISTS (SELECT 1 FROM attempt a WHERE a.data_transfer_id = OLD.id AND a.fence = OLD.fence) THEN
            PERFORM refuse('data_transfer: a row is begun by a claim, and an attempt that ended does not come back');
        END IF;
    END IF;
    IF NEW.ready <> OLD.ready THEN
        IF NOT (NEW.ready
            AND EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.status = 'completed')) THEN
            PERFORM refuse('data_transfer: the hop before it is not completed');
        END IF;
    END IF;
    IF NEW.status = 'completed' AND OLD.status <> 'completed' THEN
        -- OFFSET keeps it a question for each member, which keys answer.
        IF EXISTS (
            SELECT 1 FROM transfer_request r WHERE r.data_transfer_package_id = NEW.data_transfer_package_id
                AND NOT EXISTS (SELECT 1 FROM physical_copy c
                    JOIN proof v ON v.package_id = c.package_id AND v.location_id = c.location_id
                    WHERE c.package_id = r.package_id AND c.location_id = NEW.destination_location_id
                        AND c.status = 'present' AND c.verification = 'verified'
                        AND v.data_transfer_id = NEW.id AND v.fence = NEW.fence OFFSET 0)) THEN
            PERFORM refuse(
                'data_transfer: completed needs an equal verification_record of this attempt and a verified copy of every package');
        END IF;
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION long_term_archive_transfer_change() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    came_back BOOLEAN := FALSE;
BEGIN
    IF NEW.id <> OLD.id OR NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_location_id <> OLD.destination_location_id
        OR NEW.queue_location_id <> OLD.queue_location_id OR NEW.bytes_total <> OLD.bytes_total
        OR NEW.repair <> OLD.repair THEN
        PERFORM refuse('long_term_archive_transfer: where it goes cannot change');
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt THEN
        came_back := work_change('long_term_archive_transfer', OLD.status, NEW.status, OLD.fence, NEW.fence, OLD.attempt,
            NEW.attempt);
    END IF;
    IF came_back THEN
        IF OLD.fence = 0 OR EXISTS (SELECT 1 FROM attempt a
            WHERE a.long_term_archive_transfer_id = OLD.id AND a.fence = OLD.fence) THEN
            PERFORM refuse(
                'long_term_archive_transfer: a row is begun by a claim, and an attempt that ended does not come back');
        END IF;
    END IF;
    IF NEW.status = 'completed' AND OLD.status <> 'completed' THEN
        IF NOT (verified_copy(NEW.package_id, NEW.destination_location_id)
            AND read_back_by(NEW.package_id, NEW.destination_location_id, NEW.id, NEW.fence)) THEN
            PERFORM refuse('long_term_archive_transfer: completed needs a read-back of this attempt that counts and a verified copy');
        END IF;
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION raw_data_package_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.state <> OLD.state AND NOT (
        (OLD.state = 'waiting' AND NEW.state IN ('transferring', 'archived', 'failed'))
        OR (OLD.state = 'transferring' AND NEW.state IN ('waiting', 'archived', 'failed'))
        OR (OLD.state = 'archived' AND NEW.state = 'failed')
        OR (OLD.state = 'failed' AND NEW.state IN ('waiting', 'transferring', 'archived'))) THEN
        PERFORM refuse('raw_data_package: illegal change of state');
    END IF;
    IF NEW.state = 'archived' AND OLD.state <> 'archived' THEN
        IF NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id)
            OR EXISTS (SELECT 1 FROM archive_requirement q JOIN data_location l ON l.id = q.location_id
                WHERE q.package_id = NEW.id
                    AND NOT (l.location_type = 'long_term_archive' AND verified_copy(NEW.id, q.location_id))) THEN
            PERFORM refuse('raw_data_package: archived needs a verified copy in every archive that is required');
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION physical_copy_proof() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    is_new BOOLEAN := TG_OP = 'INSERT';
    proven BOOLEAN := FALSE;
    known RECORD;
BEGIN
    IF NOT is_new THEN
        IF NEW.package_id <> OLD.package_id OR NEW.location_id <> OLD.location_id THEN
            PERFORM refuse('physical_copy: package and location cannot change');
        END IF;
        proven := OLD.verification = 'verified';
    END IF;
    SELECT p.size_bytes, p.origin_location_id, l.location_type INTO known
        FROM raw_data_package p, data_location l WHERE p.id = NEW.package_id AND l.id = NEW.location_id;
    IF NEW.verification = 'verified' AND NOT proven THEN
        proven := equal_record(NEW.package_id, NEW.location_id);
    ELSIF NEW.verification = 'registered' AND is_new THEN
        proven := NEW.location_id IS NOT DISTINCT FROM known.origin_location_id;
    ELSIF NEW.verification = 'registered' THEN
        proven := OLD.verification = 'registered';
    ELSE
        proven := TRUE;
    END IF;
    IF NOT proven OR NEW.size_bytes IS DISTINCT FROM known.size_bytes THEN
        PERFORM refuse('physical_copy: verified needs an equal verification_record, registered is the origin alone');
    END IF;
    IF is_new THEN
        IF NEW.checked_at IS NULL AND known.location_type = 'long_term_archive' THEN
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

-- What a renewal, a retry's date or a settled end writes is no business of these rules.
DROP TRIGGER data_transfer_change ON data_transfer;
CREATE TRIGGER data_transfer_change BEFORE UPDATE OF id, data_transfer_package_id, route_id, relay_route_id,
    origin_location_id, destination_location_id, queue_location_id, hop, waits_for, bytes_total, ready, status, fence,
    attempt ON data_transfer FOR EACH ROW EXECUTE FUNCTION data_transfer_change();
DROP TRIGGER long_term_archive_transfer_change ON long_term_archive_transfer;
CREATE TRIGGER long_term_archive_transfer_change BEFORE UPDATE OF id, package_id, origin_location_id,
    destination_location_id, queue_location_id, bytes_total, repair, status, fence, attempt ON long_term_archive_transfer
    FOR EACH ROW EXECUTE FUNCTION long_term_archive_transfer_change();
DROP TRIGGER raw_data_package_stays ON raw_data_package;
CREATE TRIGGER raw_data_package_stays BEFORE UPDATE OF kind, origin_location_id, relative_path, size_bytes, file_count,
    identity ON raw_data_package FOR EACH ROW EXECUTE FUNCTION raw_data_package_stays();

-- Nobody asks this any more.
DROP FUNCTION proven_by(BIGINT, BIGINT, BIGINT, BIGINT, BIGINT);
