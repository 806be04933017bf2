-- Roles, grants and row-level security: stated anew by every migration, so that they fit the tables there are. The roles
-- are the cluster's, without login; an administrator grants one of them to each daemon's login.
--
-- | role | is for | reaches |
-- |---|---|---|
-- | ccat_xfer_owner | `db migrate`, `topology apply` | everything; the trigger functions run with its rights |
-- | ccat_xfer_manager | the transfer manager, operators | all rows; no fence, no evidence, no topology |
-- | ccat_xfer_worker | workers | work of the queues of its locations (`worker_login`), and what a claim and an end write |
-- | ccat_xfer_submitter | `submit`, other programs | registration; its own rows of `intake` |
-- | ccat_xfer_reader | dashboards | reads all |

DO $$
DECLARE
    role TEXT;
BEGIN
    FOREACH role IN ARRAY ARRAY['owner', 'manager', 'worker', 'submitter', 'reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = 'ccat_xfer_' || role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', 'ccat_xfer_' || role);
        END IF;
    END LOOP;
    IF NOT pg_has_role(current_user, 'ccat_xfer_owner', 'MEMBER') THEN
        EXECUTE format('GRANT ccat_xfer_owner TO %I', current_user);
    END IF;
    -- Who owns a schema may create one: PostgreSQL asks for that before it lets a schema change hands.
    IF NOT has_database_privilege('ccat_xfer_owner', current_database(), 'CREATE') THEN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO ccat_xfer_owner', current_database());
    END IF;
END $$;

-- ---- what a login reaches

CREATE OR REPLACE FUNCTION my_locations() RETURNS BIGINT[] LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    -- session_user: SET ROLE changes nothing about which login it is.
    SELECT coalesce(array_agg(location_id), '{}') FROM worker_login WHERE login = session_user
$$;

CREATE OR REPLACE FUNCTION reaches_transfer(transfer BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = transfer AND t.queue_location_id = ANY (my_locations()))
$$;

CREATE OR REPLACE FUNCTION reaches_archive_transfer(transfer BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM long_term_archive_transfer t
        WHERE t.id = transfer AND t.queue_location_id = ANY (my_locations()))
$$;

CREATE OR REPLACE FUNCTION reaches_bundle(bundle BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM data_transfer t
        WHERE t.data_transfer_package_id = bundle AND t.queue_location_id = ANY (my_locations()))
$$;

CREATE OR REPLACE FUNCTION reaches_package(package BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM raw_data_package p
            WHERE p.id = package AND p.origin_location_id = ANY (my_locations()))
        OR EXISTS (SELECT 1 FROM transfer_request r JOIN data_transfer t
                ON t.data_transfer_package_id = r.data_transfer_package_id
            WHERE r.package_id = package AND NOT r.withdrawn AND t.queue_location_id = ANY (my_locations()))
        OR EXISTS (SELECT 1 FROM long_term_archive_transfer t
            WHERE t.package_id = package AND t.queue_location_id = ANY (my_locations()))
        -- Also what was restored, which no work of this database brought here.
        OR EXISTS (SELECT 1 FROM physical_copy c
            WHERE c.package_id = package AND c.location_id = ANY (my_locations()))
$$;

-- A copy at an own location, or at an end of own work that is not over: a pushing worker writes the destination's copy.
CREATE OR REPLACE FUNCTION reaches_copy(package BIGINT, location BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT location = ANY (my_locations())
        OR EXISTS (SELECT 1 FROM transfer_request r JOIN data_transfer t
                ON t.data_transfer_package_id = r.data_transfer_package_id
            WHERE r.package_id = package AND NOT r.withdrawn AND t.queue_location_id = ANY (my_locations())
                AND location IN (t.origin_location_id, t.destination_location_id)
                AND t.fence > 0 AND t.status NOT IN ('completed', 'failed'))
        OR EXISTS (SELECT 1 FROM long_term_archive_transfer t
            WHERE t.package_id = package AND t.queue_location_id = ANY (my_locations())
                AND location IN (t.origin_location_id, t.destination_location_id)
                AND t.fence > 0 AND t.status NOT IN ('completed', 'failed'))
$$;

CREATE OR REPLACE FUNCTION reaches_site(site BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM data_location l WHERE l.site_id = site AND l.id = ANY (my_locations()))
$$;

CREATE OR REPLACE FUNCTION is_my_worker(worker BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (SELECT 1 FROM worker w WHERE w.id = worker AND w.login = session_user)
$$;

-- ---- the owner owns

DO $$
DECLARE
    thing RECORD;
BEGIN
    ALTER SCHEMA ccat_xfer OWNER TO ccat_xfer_owner;
    FOR thing IN SELECT c.relname FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'ccat_xfer'::regnamespace AND c.relkind IN ('r', 'p', 'v') LOOP
        EXECUTE format('ALTER TABLE ccat_xfer.%I OWNER TO ccat_xfer_owner', thing.relname);
    END LOOP;
    FOR thing IN SELECT p.oid::regprocedure AS signature FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'ccat_xfer'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO ccat_xfer_owner', thing.signature);
    END LOOP;
END $$;

-- ---- grants

REVOKE ALL ON ALL TABLES IN SCHEMA ccat_xfer
    FROM PUBLIC, ccat_xfer_manager, ccat_xfer_worker, ccat_xfer_submitter, ccat_xfer_reader;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ccat_xfer FROM PUBLIC;
REVOKE ALL ON SCHEMA ccat_xfer FROM PUBLIC;
GRANT USAGE ON SCHEMA ccat_xfer TO ccat_xfer_manager, ccat_xfer_worker, ccat_xfer_submitter, ccat_xfer_reader;
GRANT EXECUTE ON FUNCTION now_us()
    TO ccat_xfer_manager, ccat_xfer_worker, ccat_xfer_submitter, ccat_xfer_reader;
GRANT EXECUTE ON FUNCTION my_locations(), reaches_transfer(BIGINT), reaches_archive_transfer(BIGINT),
    reaches_bundle(BIGINT), reaches_package(BIGINT), reaches_copy(BIGINT, BIGINT), reaches_site(BIGINT),
    is_my_worker(BIGINT) TO ccat_xfer_worker;
GRANT EXECUTE ON FUNCTION running_on_route(BIGINT), running_at_location(BIGINT)
    TO ccat_xfer_manager, ccat_xfer_worker, ccat_xfer_reader;

GRANT SELECT ON ALL TABLES IN SCHEMA ccat_xfer TO ccat_xfer_manager, ccat_xfer_reader;

-- The manager: plans, schedules, sweeps. It cannot raise a fence, and has no evidence to give.
GRANT INSERT ON raw_data_package, package_digest, archive_requirement, data_transfer_package, transfer_request,
    data_transfer, long_term_archive_transfer, physical_copy, attempt, outbox, dead_letter, round_robin, rate_limit,
    raw_data_package_metadata
    TO ccat_xfer_manager;
GRANT UPDATE (state, package_id, refusal, decided_at) ON intake TO ccat_xfer_manager;
GRANT UPDATE (state, priority, updated_at, changed_by, change_reason) ON raw_data_package TO ccat_xfer_manager;
GRANT UPDATE (data_transfer_package_id, planned_at, not_before, obstacle, withdrawn, priority) ON transfer_request
    TO ccat_xfer_manager;
GRANT UPDATE (status, priority, retry_count, next_attempt_at, owner, lease_until, lease_boot, losses, bytes_done,
    error_class, error_text, cancel_requested, settled, updated_at, scheduled_at, finished_at, changed_by, change_reason)
    ON data_transfer, long_term_archive_transfer TO ccat_xfer_manager;
GRANT UPDATE (status, verification, archive_due_at, updated_at, changed_by, change_reason) ON physical_copy
    TO ccat_xfer_manager;
GRANT UPDATE (paused, updated_at, changed_by, change_reason) ON data_location TO ccat_xfer_manager;
GRANT UPDATE (paused, breaker_state, breaker_failures, breaker_trips, breaker_until, updated_at, changed_by,
    change_reason) ON data_transfer_route TO ccat_xfer_manager;
GRANT UPDATE (tries, last_error, sent_at), DELETE ON outbox TO ccat_xfer_manager;
GRANT UPDATE (resolved_at, resolved_by) ON dead_letter TO ccat_xfer_manager;
GRANT UPDATE (last_site_id, turn, updated_at) ON round_robin TO ccat_xfer_manager;
GRANT UPDATE (starts, period_us, tokens_micro, refilled_at), DELETE ON rate_limit TO ccat_xfer_manager;
GRANT UPDATE (state) ON worker TO ccat_xfer_manager;

-- The worker: claims, renews, ends. Where work goes, its priority and its size are not its to say.
GRANT SELECT ON schema_version, site, peer, data_location, data_transfer_route, worker_login, worker, worker_queue,
    raw_data_package, package_digest, data_transfer_package, transfer_request, data_transfer,
    long_term_archive_transfer, physical_copy, verification_record, attempt, rate_limit, archive_requirement,
    raw_data_package_metadata TO ccat_xfer_worker;
GRANT UPDATE (status, retry_count, attempt, next_attempt_at, fence, owner, lease_until, lease_boot, lease_us, renewals,
    claimed_at, claimed_by, losses, bytes_done, error_class, error_text, updated_at, finished_at, changed_by, change_reason)
    ON data_transfer, long_term_archive_transfer TO ccat_xfer_worker;
GRANT INSERT, UPDATE (path, status, verification, checked_at, updated_at, changed_by, change_reason) ON physical_copy
    TO ccat_xfer_worker;
GRANT INSERT ON verification_record, attempt, outbox, dead_letter TO ccat_xfer_worker;
GRANT INSERT (name, boot_nonce, host, process_id, version, state, slots, lease_us, running, started_at, heartbeat_at,
    heartbeat_boot, heartbeat_until, heartbeats),
    UPDATE (boot_nonce, host, process_id, version, state, slots, lease_us, running, spooled, started_at, heartbeat_at,
    heartbeat_boot, heartbeat_until, heartbeats) ON worker TO ccat_xfer_worker;
GRANT INSERT, DELETE ON worker_queue TO ccat_xfer_worker;
GRANT UPDATE (free_bytes, free_bytes_at, updated_at) ON data_location TO ccat_xfer_worker;
GRANT UPDATE (breaker_state, breaker_failures, breaker_trips, breaker_until, updated_at, changed_by, change_reason)
    ON data_transfer_route TO ccat_xfer_worker;
GRANT UPDATE (tokens_micro, refilled_at) ON rate_limit TO ccat_xfer_worker;

-- The submitter: registers, or leaves a row of intake behind.
GRANT SELECT ON schema_version, site, data_location, raw_data_package, package_digest, transfer_request, physical_copy,
    raw_data_package_metadata, intake TO ccat_xfer_submitter;
GRANT INSERT (name, kind, origin_location_id, relative_path, size_bytes, file_count, identity, priority, policy,
    changed_by, change_reason) ON raw_data_package TO ccat_xfer_submitter;
GRANT INSERT (package_id, algorithm, digest) ON package_digest TO ccat_xfer_submitter;
GRANT INSERT (package_id, metadata) ON raw_data_package_metadata TO ccat_xfer_submitter;
GRANT INSERT (package_id, location_id, path, size_bytes, status, verification, changed_by, change_reason)
    ON physical_copy TO ccat_xfer_submitter;
GRANT INSERT (package_id, origin_location_id, destination_site_id, destination_location_id, priority, requested_by)
    ON transfer_request TO ccat_xfer_submitter;
GRANT INSERT (origin_site, origin_location, destination_site, destination_location, relative_path, kind, size_bytes,
    file_count, digest, sha256, priority, policy, metadata) ON intake TO ccat_xfer_submitter;

-- ---- rows

DO $$
DECLARE
    one TEXT;
    policy RECORD;
BEGIN
    FOR policy IN SELECT tablename, policyname FROM pg_catalog.pg_policies WHERE schemaname = 'ccat_xfer' LOOP
        EXECUTE format('DROP POLICY %I ON ccat_xfer.%I', policy.policyname, policy.tablename);
    END LOOP;
    FOREACH one IN ARRAY ARRAY['data_location', 'data_transfer_route', 'worker', 'worker_queue', 'worker_login',
        'raw_data_package', 'package_digest', 'data_transfer_package', 'transfer_request', 'data_transfer',
        'long_term_archive_transfer', 'physical_copy', 'verification_record', 'attempt', 'outbox', 'intake',
        'archive_requirement', 'raw_data_package_metadata'] LOOP
        EXECUTE format('ALTER TABLE ccat_xfer.%I ENABLE ROW LEVEL SECURITY', one);
        EXECUTE format('CREATE POLICY whole ON ccat_xfer.%I TO ccat_xfer_manager, ccat_xfer_reader '
            'USING (TRUE) WITH CHECK (TRUE)', one);
    END LOOP;
END $$;

CREATE POLICY seen ON data_location FOR SELECT TO ccat_xfer_worker, ccat_xfer_submitter USING (TRUE);
CREATE POLICY own ON data_location FOR UPDATE TO ccat_xfer_worker USING (id = ANY ((SELECT my_locations())::BIGINT[]));
CREATE POLICY seen ON data_transfer_route FOR SELECT TO ccat_xfer_worker USING (TRUE);
CREATE POLICY own ON data_transfer_route FOR UPDATE TO ccat_xfer_worker
    USING (reaches_site(origin_site_id) OR reaches_site(destination_site_id));
CREATE POLICY own ON worker TO ccat_xfer_worker USING (login = session_user) WITH CHECK (login = session_user);
CREATE POLICY own ON worker_queue TO ccat_xfer_worker USING (is_my_worker(worker_id))
    WITH CHECK (is_my_worker(worker_id) AND location_id = ANY ((SELECT my_locations())::BIGINT[]));
CREATE POLICY own ON worker_login FOR SELECT TO ccat_xfer_worker USING (login = session_user);

CREATE POLICY own ON data_transfer TO ccat_xfer_worker
    USING (queue_location_id = ANY ((SELECT my_locations())::BIGINT[]));
CREATE POLICY own ON long_term_archive_transfer TO ccat_xfer_worker
    USING (queue_location_id = ANY ((SELECT my_locations())::BIGINT[]));
CREATE POLICY own ON data_transfer_package FOR SELECT TO ccat_xfer_worker USING (reaches_bundle(id));
CREATE POLICY own ON transfer_request FOR SELECT TO ccat_xfer_worker USING (reaches_bundle(data_transfer_package_id));
CREATE POLICY own ON raw_data_package FOR SELECT TO ccat_xfer_worker USING (reaches_package(id));
CREATE POLICY own ON package_digest FOR SELECT TO ccat_xfer_worker USING (reaches_package(package_id));
CREATE POLICY own ON archive_requirement FOR SELECT TO ccat_xfer_worker USING (reaches_package(package_id));
CREATE POLICY own ON raw_data_package_metadata FOR SELECT TO ccat_xfer_worker USING (reaches_package(package_id));
CREATE POLICY seen ON physical_copy FOR SELECT TO ccat_xfer_worker
    USING (location_id = ANY ((SELECT my_locations())::BIGINT[]) OR reaches_package(package_id));
CREATE POLICY own ON physical_copy FOR INSERT TO ccat_xfer_worker
    WITH CHECK (verification <> 'registered' AND reaches_copy(package_id, location_id));
CREATE POLICY change ON physical_copy FOR UPDATE TO ccat_xfer_worker USING (reaches_copy(package_id, location_id));
CREATE POLICY seen ON verification_record FOR SELECT TO ccat_xfer_worker
    USING (location_id = ANY ((SELECT my_locations())::BIGINT[]) OR reaches_package(package_id));
CREATE POLICY own ON verification_record FOR INSERT TO ccat_xfer_worker WITH CHECK (
    CASE WHEN data_transfer_id IS NOT NULL THEN reaches_transfer(data_transfer_id)
        WHEN long_term_archive_transfer_id IS NOT NULL THEN reaches_archive_transfer(long_term_archive_transfer_id)
        ELSE location_id = ANY ((SELECT my_locations())::BIGINT[]) END);
CREATE POLICY own ON attempt TO ccat_xfer_worker
    USING (reaches_transfer(data_transfer_id) OR reaches_archive_transfer(long_term_archive_transfer_id));
CREATE POLICY own ON outbox FOR INSERT TO ccat_xfer_worker
    WITH CHECK (location_id = ANY ((SELECT my_locations())::BIGINT[]));

CREATE POLICY submits ON raw_data_package TO ccat_xfer_submitter USING (TRUE) WITH CHECK (TRUE);
CREATE POLICY submits ON package_digest TO ccat_xfer_submitter USING (TRUE) WITH CHECK (TRUE);
CREATE POLICY submits ON raw_data_package_metadata TO ccat_xfer_submitter USING (TRUE) WITH CHECK (TRUE);
CREATE POLICY submits ON transfer_request TO ccat_xfer_submitter USING (TRUE) WITH CHECK (TRUE);
CREATE POLICY submits ON physical_copy TO ccat_xfer_submitter USING (TRUE) WITH CHECK (verification = 'registered');
CREATE POLICY own ON intake TO ccat_xfer_submitter
    USING (submitted_by = session_user) WITH CHECK (submitted_by = session_user);
