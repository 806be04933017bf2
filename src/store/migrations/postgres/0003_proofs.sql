-- A transfer is completed by what this attempt found, not by what an earlier one did: the record bears its work and its
-- fence. What lies there may have changed since.

-- Whether a record of this attempt says that the package's registered bytes, all of them, were found there.
CREATE FUNCTION proven_by(package BIGINT, location BIGINT, transfer BIGINT, archive_transfer BIGINT, attempt_fence BIGINT)
    RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (
        SELECT 1 FROM verification_record v
        JOIN package_digest d ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        JOIN raw_data_package p ON p.id = v.package_id
        WHERE v.package_id = package AND v.location_id = location AND v.fence = attempt_fence
            AND (v.data_transfer_id = transfer OR v.long_term_archive_transfer_id = archive_transfer)
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
$$;

CREATE OR REPLACE FUNCTION data_transfer_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.data_transfer_package_id <> OLD.data_transfer_package_id OR NEW.route_id <> OLD.route_id
        OR NEW.relay_route_id IS DISTINCT FROM OLD.relay_route_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_location_id <> OLD.destination_location_id
        OR NEW.queue_location_id <> OLD.queue_location_id OR NEW.hop <> OLD.hop
        OR NEW.waits_for IS DISTINCT FROM OLD.waits_for OR NEW.bytes_total <> OLD.bytes_total THEN
        PERFORM refuse('data_transfer: where it goes cannot change');
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt THEN
        PERFORM work_change('data_transfer', OLD.status, NEW.status, OLD.fence, NEW.fence, OLD.attempt, NEW.attempt,
            EXISTS (SELECT 1 FROM attempt a WHERE a.data_transfer_id = OLD.id AND a.fence = OLD.fence));
    END IF;
    IF NEW.ready <> OLD.ready AND NOT (NEW.ready
        AND EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.status = 'completed')) THEN
        PERFORM refuse('data_transfer: the hop before it is not completed');
    END IF;
    IF NEW.status = 'completed' AND OLD.status <> 'completed' AND EXISTS (
        SELECT 1 FROM transfer_request r WHERE r.data_transfer_package_id = NEW.data_transfer_package_id
            AND NOT (verified_copy(r.package_id, NEW.destination_location_id)
                AND proven_by(r.package_id, NEW.destination_location_id, NEW.id, NULL, NEW.fence))) THEN
        PERFORM refuse(
            'data_transfer: completed needs an equal verification_record of this attempt and a verified copy of every package');
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION long_term_archive_transfer_change() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.id <> OLD.id OR NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_location_id <> OLD.destination_location_id
        OR NEW.queue_location_id <> OLD.queue_location_id OR NEW.bytes_total <> OLD.bytes_total THEN
        PERFORM refuse('long_term_archive_transfer: where it goes cannot change');
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.attempt <> OLD.attempt THEN
        PERFORM work_change('long_term_archive_transfer', OLD.status, NEW.status, OLD.fence, NEW.fence, OLD.attempt,
            NEW.attempt,
            EXISTS (SELECT 1 FROM attempt a WHERE a.long_term_archive_transfer_id = OLD.id AND a.fence = OLD.fence));
    END IF;
    IF NEW.status = 'completed' AND OLD.status <> 'completed'
        AND NOT (verified_copy(NEW.package_id, NEW.destination_location_id)
            AND proven_by(NEW.package_id, NEW.destination_location_id, NULL, NEW.id, NEW.fence)) THEN
        PERFORM refuse('long_term_archive_transfer: completed needs an equal verification_record of this attempt and a verified copy');
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;
