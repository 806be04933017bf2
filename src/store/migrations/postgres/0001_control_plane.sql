-- The control plane's tables. What each holds, who writes it and why each constraint holds stands in the module doc of
-- `store`; this file and its SQLite sibling say the same thing twice.
-- Times are microseconds since the Unix epoch. Sizes are bytes. The schema `ccat_xfer` exists, and the search path names
-- it; trigger functions run with the owner's rights, because a worker sees only a part of the rows that prove its work.

-- The one clock. It moves on within a transaction, so that a lease is not granted from a time that has passed.
CREATE FUNCTION now_us() RETURNS BIGINT LANGUAGE sql VOLATILE
    RETURN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;

CREATE TABLE site (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    short_name TEXT NOT NULL UNIQUE
        CHECK (length(short_name) BETWEEN 1 AND 40 AND short_name ~ '^[a-z][a-z0-9_]*$'),
    location TEXT NOT NULL DEFAULT '',
    active BOOLEAN NOT NULL DEFAULT TRUE,
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us()
);

CREATE TABLE peer (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    address TEXT NOT NULL CHECK (length(address) BETWEEN 1 AND 300),
    fingerprint TEXT NOT NULL CHECK (length(fingerprint) BETWEEN 1 AND 200),
    active BOOLEAN NOT NULL DEFAULT TRUE,
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us()
);
CREATE UNIQUE INDEX peer_fingerprint ON peer (fingerprint) WHERE active;

CREATE TABLE data_location (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site_id BIGINT NOT NULL REFERENCES site (id),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 60 AND name ~ '^[a-z][a-z0-9_]*$'),
    -- site.short_name || '_' || name. Unique by itself: the sites "a" and "a_b" could else share a queue.
    queue_stem TEXT NOT NULL UNIQUE,
    location_type TEXT NOT NULL CHECK (location_type IN ('source', 'buffer', 'long_term_archive', 'processing')),
    storage_type TEXT NOT NULL CHECK (storage_type IN ('disk', 's3', 'tape')),
    priority BIGINT NOT NULL DEFAULT 1 CHECK (priority BETWEEN 1 AND 1000),
    peer_id BIGINT REFERENCES peer (id),
    active BOOLEAN NOT NULL DEFAULT TRUE,
    paused BOOLEAN NOT NULL DEFAULT FALSE,
    capacity_bytes BIGINT CHECK (capacity_bytes > 0),
    keep_free_bytes BIGINT NOT NULL DEFAULT 0 CHECK (keep_free_bytes >= 0),
    free_bytes BIGINT CHECK (free_bytes >= 0),
    free_bytes_at BIGINT,
    rate_limit_bytes_per_s BIGINT CHECK (rate_limit_bytes_per_s > 0),
    max_concurrent BIGINT CHECK (max_concurrent > 0),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (site_id, name),
    UNIQUE (id, site_id),
    CHECK ((free_bytes IS NULL) = (free_bytes_at IS NULL))
);

CREATE TABLE data_transfer_route (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    route_type TEXT NOT NULL CHECK (route_type IN ('direct', 'relay', 'custom')),
    origin_site_id BIGINT NOT NULL REFERENCES site (id),
    destination_site_id BIGINT NOT NULL REFERENCES site (id),
    origin_location_id BIGINT,
    destination_location_id BIGINT,
    via_site_id BIGINT REFERENCES site (id),
    method TEXT NOT NULL CHECK (method IN ('xfer', 'bbcp')),
    dialer TEXT NOT NULL CHECK (dialer IN ('origin', 'destination')),
    transport TEXT NOT NULL DEFAULT 'auto' CHECK (transport IN ('auto', 'quic', 'tcp', 'ssh')),
    rate_limit_bytes_per_s BIGINT CHECK (rate_limit_bytes_per_s > 0),
    streams BIGINT CHECK (streams BETWEEN 1 AND 256),
    max_concurrent BIGINT CHECK (max_concurrent > 0),
    active BOOLEAN NOT NULL DEFAULT TRUE,
    paused BOOLEAN NOT NULL DEFAULT FALSE,
    breaker_state TEXT NOT NULL DEFAULT 'closed' CHECK (breaker_state IN ('closed', 'open', 'half_open')),
    breaker_failures BIGINT NOT NULL DEFAULT 0 CHECK (breaker_failures >= 0),
    breaker_trips BIGINT NOT NULL DEFAULT 0 CHECK (breaker_trips >= 0),
    breaker_until BIGINT,
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    FOREIGN KEY (origin_location_id, origin_site_id) REFERENCES data_location (id, site_id),
    FOREIGN KEY (destination_location_id, destination_site_id) REFERENCES data_location (id, site_id),
    CHECK ((route_type = 'relay') = (via_site_id IS NOT NULL)),
    CHECK (via_site_id IS NULL OR (via_site_id <> origin_site_id AND via_site_id <> destination_site_id)),
    CHECK ((route_type = 'custom') = (origin_location_id IS NOT NULL OR destination_location_id IS NOT NULL)),
    CHECK (origin_site_id <> destination_site_id
        OR (origin_location_id IS NOT NULL AND destination_location_id IS NOT NULL
            AND origin_location_id <> destination_location_id)),
    CHECK ((breaker_state = 'closed') = (breaker_until IS NULL))
);
-- One way from here to there: which of two equal routes is meant would else depend on chance.
CREATE UNIQUE INDEX data_transfer_route_way ON data_transfer_route
    (origin_site_id, destination_site_id, coalesce(origin_location_id, 0), coalesce(destination_location_id, 0))
    WHERE active;

CREATE TABLE worker (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    boot_nonce TEXT NOT NULL CHECK (length(boot_nonce) > 0),
    login TEXT NOT NULL DEFAULT session_user,
    host TEXT NOT NULL,
    process_id BIGINT NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'stopped')),
    slots BIGINT NOT NULL CHECK (slots > 0),
    lease_us BIGINT NOT NULL CHECK (lease_us BETWEEN 1000000 AND 3600000000),
    running TEXT NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(running::jsonb) IN ('array', 'object')),
    started_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    heartbeat_at BIGINT NOT NULL,
    -- The boot whose clock `heartbeat_until` is read from, as with leases.
    heartbeat_boot TEXT NOT NULL,
    heartbeat_until BIGINT NOT NULL
);

CREATE TABLE worker_queue (
    worker_id BIGINT NOT NULL REFERENCES worker (id),
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    operation TEXT NOT NULL CHECK (operation IN ('raw_data_package_creation', 'data_transfer_package_creation',
        'data_transfer', 'data_transfer_unpacking', 'long_term_archive_transfer', 'staging', 'deletion')),
    max_concurrent BIGINT CHECK (max_concurrent > 0),
    PRIMARY KEY (worker_id, location_id, operation)
);
CREATE INDEX worker_queue_by_location ON worker_queue (location_id, operation);

-- A login and the locations that it may reach, for the row-level security of workers.
CREATE TABLE worker_login (
    login TEXT NOT NULL CHECK (length(login) > 0),
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    PRIMARY KEY (login, location_id)
);

CREATE TABLE raw_data_package (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 4096),
    kind TEXT NOT NULL CHECK (kind IN ('file', 'tree')),
    origin_location_id BIGINT NOT NULL REFERENCES data_location (id),
    relative_path BYTEA NOT NULL CHECK (length(relative_path) BETWEEN 1 AND 4095),
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    file_count BIGINT NOT NULL CHECK (file_count >= 0),
    -- The blake3 digest of a file, the tree digest of a tree: equal to its row of package_digest.
    identity BYTEA NOT NULL CHECK (length(identity) = 32),
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'transferring', 'archived', 'failed')),
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    policy TEXT NOT NULL DEFAULT 'transfer_only' CHECK (policy IN ('transfer_only', 'one_archive', 'every_archive')),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (origin_location_id, relative_path, identity),
    CHECK (kind = 'tree' OR file_count = 1)
);
CREATE INDEX raw_data_package_state ON raw_data_package (state, id);

CREATE TABLE package_digest (
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    algorithm TEXT NOT NULL CHECK (algorithm IN ('blake3', 'tree', 'sha256')),
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    PRIMARY KEY (package_id, algorithm)
);

CREATE TABLE archive_requirement (
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    PRIMARY KEY (package_id, location_id)
);

CREATE TABLE data_transfer_package (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin_location_id BIGINT NOT NULL REFERENCES data_location (id),
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    package_count BIGINT NOT NULL CHECK (package_count > 0),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    created_by TEXT NOT NULL CHECK (length(created_by) > 0)
);

CREATE TABLE transfer_request (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    origin_location_id BIGINT NOT NULL REFERENCES data_location (id),
    destination_site_id BIGINT REFERENCES site (id),
    destination_location_id BIGINT,
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    data_transfer_package_id BIGINT REFERENCES data_transfer_package (id),
    withdrawn BOOLEAN NOT NULL DEFAULT FALSE,
    -- Why the planner could not place it the last time, for `explain`.
    obstacle TEXT,
    requested_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    requested_by TEXT NOT NULL CHECK (length(requested_by) > 0),
    planned_at BIGINT,
    -- The planner does not look at it before; one that fits nowhere comes again later.
    not_before BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    -- What may go into one bundle. One column, so that the groups there are cost one step of the index each.
    planning_group TEXT COLLATE "C" GENERATED ALWAYS AS (CAST(origin_location_id AS TEXT) || '/'
        || CAST(coalesce(destination_site_id, 0) AS TEXT) || '/'
        || CAST(coalesce(destination_location_id, 0) AS TEXT) || '/' || CAST(priority AS TEXT)) STORED,
    FOREIGN KEY (destination_location_id, destination_site_id) REFERENCES data_location (id, site_id),
    CHECK (destination_location_id IS NULL OR destination_site_id IS NOT NULL),
    CHECK (destination_location_id IS NULL OR destination_location_id <> origin_location_id),
    CHECK ((planned_at IS NULL) = (data_transfer_package_id IS NULL)),
    CHECK (data_transfer_package_id IS NULL OR NOT withdrawn)
);
CREATE UNIQUE INDEX transfer_request_once ON transfer_request
    (package_id, coalesce(destination_site_id, 0), coalesce(destination_location_id, 0)) WHERE NOT withdrawn;
CREATE INDEX transfer_request_unplanned ON transfer_request (planning_group, not_before, id)
    WHERE data_transfer_package_id IS NULL AND NOT withdrawn;
-- Not of those without a bundle: SQLite would take it for a look at what is unplanned, and walk.
CREATE INDEX transfer_request_members ON transfer_request (data_transfer_package_id, package_id)
    WHERE data_transfer_package_id IS NOT NULL;

CREATE TABLE data_transfer (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    data_transfer_package_id BIGINT NOT NULL REFERENCES data_transfer_package (id),
    route_id BIGINT NOT NULL REFERENCES data_transfer_route (id),
    relay_route_id BIGINT REFERENCES data_transfer_route (id),
    origin_location_id BIGINT NOT NULL REFERENCES data_location (id),
    destination_location_id BIGINT NOT NULL REFERENCES data_location (id),
    queue_location_id BIGINT NOT NULL REFERENCES data_location (id),
    hop BIGINT NOT NULL DEFAULT 1 CHECK (hop BETWEEN 1 AND 8),
    waits_for BIGINT REFERENCES data_transfer (id),
    -- True once nothing is waited for; kept by a trigger, so that the planner's index has no row that cannot run.
    ready BOOLEAN NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'scheduled', 'in_progress', 'completed', 'failed')),
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    retry_count BIGINT NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    attempt BIGINT NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_attempt_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    fence BIGINT NOT NULL DEFAULT 0 CHECK (fence >= 0),
    owner BIGINT REFERENCES worker (id),
    lease_until BIGINT,
    lease_boot TEXT,
    claimed_at BIGINT,
    -- Whose the present fence is; it outlives owner, which a lost lease clears.
    claimed_by TEXT,
    -- Leases lost since the last outcome, or since a person retried it.
    losses BIGINT NOT NULL DEFAULT 0 CHECK (losses >= 0),
    bytes_done BIGINT NOT NULL DEFAULT 0 CHECK (bytes_done >= 0),
    bytes_total BIGINT NOT NULL CHECK (bytes_total >= 0),
    error_class TEXT CHECK (error_class IN ('network', 'remote_busy', 'authentication', 'no_space', 'missing_source',
        'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs', 'configuration',
        'lost_worker', 'cancelled', 'bug')),
    error_text TEXT,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    scheduled_at BIGINT,
    finished_at BIGINT,
    -- Whether a manager has drawn the consequences of its end.
    settled BOOLEAN NOT NULL DEFAULT FALSE,
    -- What may run, or not, together: pause, breaker and limits are the same for all of it.
    lane TEXT COLLATE "C" GENERATED ALWAYS AS (CAST(queue_location_id AS TEXT) || '/' || CAST(route_id AS TEXT) || '/'
        || CAST(origin_location_id AS TEXT) || '/' || CAST(destination_location_id AS TEXT) || '/'
        || CAST(priority AS TEXT)) STORED,
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    CHECK (origin_location_id <> destination_location_id),
    CHECK (NOT settled OR status IN ('completed', 'failed')),
    CHECK (queue_location_id = origin_location_id OR queue_location_id = destination_location_id),
    CHECK ((hop = 1) = (waits_for IS NULL)),
    CHECK (ready OR waits_for IS NOT NULL),
    CHECK (ready OR status IN ('pending', 'failed')),
    CHECK (bytes_done <= bytes_total),
    CHECK (attempt <= fence),
    CHECK ((status = 'in_progress') = (owner IS NOT NULL)),
    CHECK ((owner IS NULL) = (lease_until IS NULL) AND (owner IS NULL) = (lease_boot IS NULL)),
    CHECK (status <> 'in_progress' OR (fence > 0 AND attempt > 0 AND claimed_at IS NOT NULL)),
    CHECK ((status IN ('completed', 'failed')) = (finished_at IS NOT NULL)),
    CHECK ((error_class IS NULL) = (error_text IS NULL)),
    CHECK (status <> 'failed' OR error_class IS NOT NULL),
    CHECK (status <> 'completed' OR error_class IS NULL)
);
-- A second manager's copy of a plan ends here. A failed row makes room, for a failover to another buffer.
CREATE UNIQUE INDEX data_transfer_live ON data_transfer (data_transfer_package_id, hop) WHERE status <> 'failed';
-- The status leads, though it is the same in every row: SQLite would else take data_transfer_status, and sort.
CREATE INDEX data_transfer_pending ON data_transfer (status, lane, next_attempt_at, id)
    WHERE status = 'pending' AND ready;
CREATE INDEX data_transfer_unsettled ON data_transfer (settled, finished_at, id)
    WHERE status IN ('completed', 'failed') AND NOT settled;
-- What is on its way to a place, for its room.
CREATE INDEX data_transfer_bound_for ON data_transfer (destination_location_id, bytes_total)
    WHERE status IN ('pending', 'scheduled', 'in_progress');
CREATE INDEX data_transfer_no_space ON data_transfer (status, destination_location_id, next_attempt_at, id)
    WHERE status = 'pending' AND error_class = 'no_space';
CREATE INDEX data_transfer_due ON data_transfer (status, next_attempt_at) WHERE status = 'pending' AND ready;
-- The first row of each way (route, origin, destination) of a queue is the one to claim next on it: a claim leaps from
-- way to way, and never walks over rows whose way is closed.
CREATE INDEX data_transfer_claim ON data_transfer
    (queue_location_id, route_id, origin_location_id, destination_location_id, priority DESC, id)
    WHERE status = 'scheduled';
CREATE INDEX data_transfer_lease ON data_transfer (lease_until) WHERE status = 'in_progress';
CREATE INDEX data_transfer_running ON data_transfer (route_id) WHERE status = 'in_progress';
CREATE INDEX data_transfer_status ON data_transfer (status, id);
CREATE INDEX data_transfer_waiters ON data_transfer (waits_for) WHERE waits_for IS NOT NULL;

CREATE TABLE long_term_archive_transfer (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    origin_location_id BIGINT NOT NULL REFERENCES data_location (id),
    destination_location_id BIGINT NOT NULL REFERENCES data_location (id),
    queue_location_id BIGINT NOT NULL REFERENCES data_location (id),
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'scheduled', 'in_progress', 'completed', 'failed')),
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    retry_count BIGINT NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    attempt BIGINT NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_attempt_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    fence BIGINT NOT NULL DEFAULT 0 CHECK (fence >= 0),
    owner BIGINT REFERENCES worker (id),
    lease_until BIGINT,
    lease_boot TEXT,
    claimed_at BIGINT,
    -- Whose the present fence is; it outlives owner, which a lost lease clears.
    claimed_by TEXT,
    -- Leases lost since the last outcome, or since a person retried it.
    losses BIGINT NOT NULL DEFAULT 0 CHECK (losses >= 0),
    bytes_done BIGINT NOT NULL DEFAULT 0 CHECK (bytes_done >= 0),
    bytes_total BIGINT NOT NULL CHECK (bytes_total >= 0),
    error_class TEXT CHECK (error_class IN ('network', 'remote_busy', 'authentication', 'no_space', 'missing_source',
        'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs', 'configuration',
        'lost_worker', 'cancelled', 'bug')),
    error_text TEXT,
    cancel_requested BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    scheduled_at BIGINT,
    finished_at BIGINT,
    -- Whether a manager has drawn the consequences of its end.
    settled BOOLEAN NOT NULL DEFAULT FALSE,
    -- What may run, or not, together: pause, breaker and limits are the same for all of it.
    lane TEXT COLLATE "C" GENERATED ALWAYS AS (CAST(queue_location_id AS TEXT) || '/' || CAST(origin_location_id AS TEXT) || '/'
        || CAST(priority AS TEXT)) STORED,
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    CHECK (origin_location_id <> destination_location_id),
    CHECK (NOT settled OR status IN ('completed', 'failed')),
    CHECK (queue_location_id = destination_location_id),
    CHECK (bytes_done <= bytes_total),
    CHECK (attempt <= fence),
    CHECK ((status = 'in_progress') = (owner IS NOT NULL)),
    CHECK ((owner IS NULL) = (lease_until IS NULL) AND (owner IS NULL) = (lease_boot IS NULL)),
    CHECK (status <> 'in_progress' OR (fence > 0 AND attempt > 0 AND claimed_at IS NOT NULL)),
    CHECK ((status IN ('completed', 'failed')) = (finished_at IS NOT NULL)),
    CHECK ((error_class IS NULL) = (error_text IS NULL)),
    CHECK (status <> 'failed' OR error_class IS NOT NULL),
    CHECK (status <> 'completed' OR error_class IS NULL)
);
CREATE UNIQUE INDEX long_term_archive_transfer_live ON long_term_archive_transfer (package_id, destination_location_id)
    WHERE status <> 'failed';
CREATE INDEX long_term_archive_transfer_pending ON long_term_archive_transfer (status, lane, next_attempt_at, id)
    WHERE status = 'pending';
CREATE INDEX long_term_archive_transfer_unsettled ON long_term_archive_transfer (settled, finished_at, id)
    WHERE status IN ('completed', 'failed') AND NOT settled;
CREATE INDEX long_term_archive_transfer_due ON long_term_archive_transfer (status, next_attempt_at)
    WHERE status = 'pending';
CREATE INDEX long_term_archive_transfer_claim ON long_term_archive_transfer
    (queue_location_id, origin_location_id, priority DESC, id) WHERE status = 'scheduled';
CREATE INDEX long_term_archive_transfer_lease ON long_term_archive_transfer (lease_until) WHERE status = 'in_progress';
CREATE INDEX long_term_archive_transfer_status ON long_term_archive_transfer (status, id);

CREATE TABLE physical_copy (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    path BYTEA NOT NULL CHECK (length(path) BETWEEN 1 AND 4095),
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    status TEXT NOT NULL CHECK (status IN ('present', 'staged', 'deletion_possible', 'deletion_scheduled',
        'deletion_in_progress', 'deleted', 'deletion_failed')),
    verification TEXT NOT NULL CHECK (verification IN ('registered', 'verified', 'suspect', 'corrupt')),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (package_id, location_id)
);
CREATE INDEX physical_copy_by_location ON physical_copy (location_id, status);

CREATE TABLE verification_record (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    package_id BIGINT NOT NULL REFERENCES raw_data_package (id),
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    data_transfer_id BIGINT REFERENCES data_transfer (id),
    long_term_archive_transfer_id BIGINT REFERENCES long_term_archive_transfer (id),
    fence BIGINT CHECK (fence > 0),
    algorithm TEXT NOT NULL CHECK (algorithm IN ('blake3', 'tree', 'sha256')),
    expected_digest BYTEA NOT NULL CHECK (length(expected_digest) = 32),
    found_digest BYTEA NOT NULL CHECK (length(found_digest) = 32),
    expected_size_bytes BIGINT NOT NULL CHECK (expected_size_bytes >= 0),
    found_size_bytes BIGINT NOT NULL CHECK (found_size_bytes >= 0),
    method TEXT NOT NULL CHECK (method IN ('received', 'read_back', 'found_equal', 'scrub')),
    medium TEXT NOT NULL CHECK (medium IN ('disk', 's3', 'tape')),
    cached BOOLEAN NOT NULL,
    host TEXT NOT NULL CHECK (length(host) > 0),
    version TEXT NOT NULL CHECK (length(version) > 0),
    receiver_key TEXT,
    started_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    CHECK (data_transfer_id IS NULL OR long_term_archive_transfer_id IS NULL),
    CHECK ((data_transfer_id IS NULL AND long_term_archive_transfer_id IS NULL) = (fence IS NULL)),
    CHECK (ended_at >= started_at)
);
CREATE INDEX verification_record_of ON verification_record (package_id, location_id);

CREATE TABLE attempt (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    data_transfer_id BIGINT REFERENCES data_transfer (id),
    long_term_archive_transfer_id BIGINT REFERENCES long_term_archive_transfer (id),
    fence BIGINT NOT NULL CHECK (fence > 0),
    number BIGINT NOT NULL CHECK (number > 0),
    worker_id BIGINT REFERENCES worker (id),
    worker_name TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('completed', 'handed_back', 'network', 'remote_busy', 'authentication',
        'no_space', 'missing_source', 'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs',
        'configuration', 'lost_worker', 'cancelled', 'bug')),
    error_chain TEXT NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(error_chain::jsonb) IN ('array', 'object')),
    bytes_done BIGINT NOT NULL CHECK (bytes_done >= 0),
    log TEXT NOT NULL DEFAULT '',
    recorded_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    CHECK ((data_transfer_id IS NULL) <> (long_term_archive_transfer_id IS NULL))
);
-- One fence ends once: an outcome that is replayed meets its own row.
CREATE UNIQUE INDEX attempt_of_transfer ON attempt (data_transfer_id, fence) WHERE data_transfer_id IS NOT NULL;
CREATE UNIQUE INDEX attempt_of_archive ON attempt (long_term_archive_transfer_id, fence)
    WHERE long_term_archive_transfer_id IS NOT NULL;

CREATE TABLE event (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity TEXT NOT NULL CHECK (entity IN ('raw_data_package', 'data_transfer', 'long_term_archive_transfer',
        'physical_copy', 'data_location', 'data_transfer_route', 'worker', 'topology')),
    entity_id BIGINT NOT NULL,
    from_state TEXT,
    to_state TEXT NOT NULL,
    actor TEXT NOT NULL CHECK (length(actor) > 0),
    fence BIGINT,
    at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    reason TEXT NOT NULL
);
CREATE INDEX event_of ON event (entity, entity_id, id);

CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    location_id BIGINT NOT NULL REFERENCES data_location (id),
    operation TEXT NOT NULL CHECK (operation IN ('raw_data_package_creation', 'data_transfer_package_creation',
        'data_transfer', 'data_transfer_unpacking', 'long_term_archive_transfer', 'staging', 'deletion')),
    work_id BIGINT NOT NULL,
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    created_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    tries BIGINT NOT NULL DEFAULT 0 CHECK (tries >= 0),
    last_error TEXT,
    sent_at BIGINT
);
-- Fewest tries first: a hint that no broker takes must not stand in front of the others.
CREATE INDEX outbox_unsent ON outbox (tries, id) WHERE sent_at IS NULL;
CREATE INDEX outbox_of ON outbox (location_id, operation, id);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

CREATE TABLE dead_letter (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue TEXT NOT NULL,
    body BYTEA NOT NULL,
    headers TEXT NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers::jsonb) IN ('array', 'object')),
    reason TEXT NOT NULL CHECK (length(reason) > 0),
    at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    resolved_at BIGINT,
    resolved_by TEXT,
    CHECK ((resolved_at IS NULL) = (resolved_by IS NULL))
);
CREATE INDEX dead_letter_open ON dead_letter (id) WHERE resolved_at IS NULL;

CREATE TABLE round_robin (
    route_group TEXT PRIMARY KEY CHECK (length(route_group) > 0),
    last_site_id BIGINT REFERENCES site (id),
    turn BIGINT NOT NULL DEFAULT 0 CHECK (turn >= 0),
    updated_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us()
);

-- Starts per period for one queue, or for all ('*'). A start costs 1,000,000 of tokens_micro.
CREATE TABLE rate_limit (
    scope TEXT PRIMARY KEY CHECK (length(scope) > 0),
    starts BIGINT NOT NULL CHECK (starts > 0),
    period_us BIGINT NOT NULL CHECK (period_us IN (1000000, 60000000, 3600000000)),
    tokens_micro BIGINT NOT NULL CHECK (tokens_micro >= 0),
    refilled_at BIGINT NOT NULL
);

-- The documented INSERT for other programs: names and digests only, no ids.
CREATE TABLE intake (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin_site TEXT NOT NULL,
    origin_location TEXT NOT NULL,
    destination_site TEXT NOT NULL,
    destination_location TEXT,
    relative_path BYTEA NOT NULL CHECK (length(relative_path) BETWEEN 1 AND 4095),
    kind TEXT NOT NULL CHECK (kind IN ('file', 'tree')),
    size_bytes BIGINT NOT NULL CHECK (size_bytes >= 0),
    file_count BIGINT NOT NULL DEFAULT 1 CHECK (file_count >= 0),
    digest TEXT NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    sha256 TEXT CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    priority BIGINT NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    policy TEXT NOT NULL DEFAULT 'transfer_only' CHECK (policy IN ('transfer_only', 'one_archive', 'every_archive')),
    submitted_by TEXT NOT NULL DEFAULT session_user CHECK (length(submitted_by) > 0),
    submitted_at BIGINT NOT NULL DEFAULT ccat_xfer.now_us(),
    state TEXT NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'accepted', 'refused')),
    package_id BIGINT REFERENCES raw_data_package (id),
    refusal TEXT,
    decided_at BIGINT,
    CHECK ((state = 'new') = (decided_at IS NULL)),
    CHECK ((state = 'accepted') = (package_id IS NOT NULL)),
    CHECK ((state = 'refused') = (refusal IS NOT NULL))
);
CREATE INDEX intake_new ON intake (id) WHERE state = 'new';

-- ---- refusals

-- The state CX001 tells a refusal by these rules from any other error.
CREATE FUNCTION refuse(message TEXT) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'CX001', MESSAGE = message;
END $$;

CREATE FUNCTION refuse_always() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    PERFORM refuse(TG_TABLE_NAME || ': ' || TG_ARGV[0]);
    RETURN NULL;
END $$;

-- ---- names of queues stay

CREATE FUNCTION site_names_stay() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.short_name <> OLD.short_name THEN
        PERFORM refuse('site: the short name is part of queue names and cannot change');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER site_names_stay BEFORE UPDATE ON site FOR EACH ROW EXECUTE FUNCTION site_names_stay();

CREATE FUNCTION data_location_names() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.site_id <> OLD.site_id OR NEW.name <> OLD.name OR NEW.queue_stem <> OLD.queue_stem THEN
            PERFORM refuse('data_location: site and name are part of queue names and cannot change');
        END IF;
    ELSIF NEW.queue_stem IS DISTINCT FROM (SELECT short_name || '_' || NEW.name FROM site WHERE id = NEW.site_id) THEN
        PERFORM refuse('data_location: queue_stem is not {short_name of the site}_{name}');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER data_location_names BEFORE INSERT OR UPDATE ON data_location
    FOR EACH ROW EXECUTE FUNCTION data_location_names();

-- ---- what never changes once it is written

CREATE FUNCTION raw_data_package_stays() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.kind <> OLD.kind OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.relative_path <> OLD.relative_path OR NEW.size_bytes <> OLD.size_bytes
        OR NEW.file_count <> OLD.file_count OR NEW.identity <> OLD.identity THEN
        PERFORM refuse('raw_data_package: what was registered cannot change');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER raw_data_package_stays BEFORE UPDATE ON raw_data_package
    FOR EACH ROW EXECUTE FUNCTION raw_data_package_stays();

CREATE TRIGGER data_transfer_package_stays BEFORE UPDATE ON data_transfer_package
    FOR EACH ROW EXECUTE FUNCTION refuse_always('a bundle cannot change');

CREATE FUNCTION transfer_request_stays() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.data_transfer_package_id IS NOT NULL OR NOT EXISTS (
            SELECT 1 FROM raw_data_package p JOIN package_digest d ON d.package_id = p.id
            WHERE p.id = NEW.package_id AND d.algorithm = CASE p.kind WHEN 'file' THEN 'blake3' ELSE 'tree' END
                AND d.digest = p.identity) THEN
            PERFORM refuse('transfer_request: it starts unplanned, and its package has its blake3 or tree digest');
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
        OR NEW.destination_site_id IS DISTINCT FROM OLD.destination_site_id
        OR NEW.destination_location_id IS DISTINCT FROM OLD.destination_location_id
        OR (OLD.data_transfer_package_id IS NOT NULL
            AND NEW.data_transfer_package_id IS DISTINCT FROM OLD.data_transfer_package_id) THEN
        PERFORM refuse('transfer_request: what was requested, and the bundle it went into, cannot change');
    END IF;
    -- A bundle that a transfer refers to is closed.
    IF NEW.data_transfer_package_id IS NOT NULL AND OLD.data_transfer_package_id IS NULL
        AND (EXISTS (SELECT 1 FROM data_transfer t WHERE t.data_transfer_package_id = NEW.data_transfer_package_id)
            OR NEW.origin_location_id IS DISTINCT FROM
                (SELECT origin_location_id FROM data_transfer_package WHERE id = NEW.data_transfer_package_id)) THEN
        PERFORM refuse('transfer_request: the bundle is closed, or starts elsewhere');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER transfer_request_stays BEFORE INSERT OR UPDATE ON transfer_request
    FOR EACH ROW EXECUTE FUNCTION transfer_request_stays();

CREATE FUNCTION physical_copy_proof() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
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
    RETURN NEW;
END $$;
CREATE TRIGGER physical_copy_proof BEFORE INSERT OR UPDATE ON physical_copy
    FOR EACH ROW EXECUTE FUNCTION physical_copy_proof();

-- ---- insert-only tables, and rows that are never deleted

CREATE TRIGGER event_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are only inserted');
CREATE TRIGGER verification_record_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON verification_record
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are only inserted');
CREATE TRIGGER attempt_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON attempt
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are only inserted');
CREATE TRIGGER package_digest_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON package_digest
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are only inserted');
CREATE TRIGGER raw_data_package_no_delete BEFORE DELETE OR TRUNCATE ON raw_data_package
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are never deleted');
CREATE TRIGGER data_transfer_no_delete BEFORE DELETE OR TRUNCATE ON data_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are never deleted');
CREATE TRIGGER long_term_archive_transfer_no_delete BEFORE DELETE OR TRUNCATE ON long_term_archive_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are never deleted');
CREATE TRIGGER physical_copy_no_delete BEFORE DELETE OR TRUNCATE ON physical_copy
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_always('rows are never deleted');

-- ---- proofs

-- Whether a record says that this package's registered bytes, all of them, were found there.
CREATE FUNCTION equal_record(package BIGINT, location BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT EXISTS (
        SELECT 1 FROM verification_record v
        JOIN package_digest d ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        JOIN raw_data_package p ON p.id = v.package_id
        WHERE v.package_id = package AND v.location_id = location
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
$$;

CREATE FUNCTION verified_copy(package BIGINT, location BIGINT) RETURNS boolean LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT equal_record(package, location) AND EXISTS (
        SELECT 1 FROM physical_copy c WHERE c.package_id = package AND c.location_id = location
            AND c.status = 'present' AND c.verification = 'verified')
$$;

-- ---- births

CREATE FUNCTION data_transfer_birth() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.status <> 'pending' OR NEW.fence <> 0 OR NEW.attempt <> 0 OR NEW.retry_count <> 0 OR NEW.bytes_done <> 0
        OR NEW.ready IS DISTINCT FROM (NEW.waits_for IS NULL
            OR EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.status = 'completed')) THEN
        PERFORM refuse('data_transfer: it starts pending, untried, and ready unless it waits');
    END IF;
    IF NEW.waits_for IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.hop = NEW.hop - 1
            AND t.data_transfer_package_id = NEW.data_transfer_package_id
            AND t.destination_location_id = NEW.origin_location_id) THEN
        PERFORM refuse('data_transfer: it waits for the hop before it, of the same bundle, to where it starts');
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM data_transfer_package b
        WHERE b.id = NEW.data_transfer_package_id AND b.size_bytes = NEW.bytes_total
            AND (b.package_count, b.size_bytes) = (
                SELECT count(*), sum(p.size_bytes)::bigint FROM transfer_request r
                JOIN raw_data_package p ON p.id = r.package_id WHERE r.data_transfer_package_id = b.id)
            AND (NEW.hop > 1 OR b.origin_location_id = NEW.origin_location_id)) THEN
        PERFORM refuse('data_transfer: its bundle has other sums, or starts elsewhere');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER data_transfer_birth BEFORE INSERT ON data_transfer
    FOR EACH ROW EXECUTE FUNCTION data_transfer_birth();

CREATE FUNCTION long_term_archive_transfer_birth() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.status <> 'pending' OR NEW.fence <> 0 OR NEW.attempt <> 0 OR NEW.retry_count <> 0 OR NEW.bytes_done <> 0
        OR NEW.bytes_total IS DISTINCT FROM (SELECT size_bytes FROM raw_data_package WHERE id = NEW.package_id) THEN
        PERFORM refuse('long_term_archive_transfer: it starts pending, untried, with the size of its package');
    END IF;
    IF NOT EXISTS (SELECT 1 FROM data_location WHERE id = NEW.destination_location_id
        AND location_type = 'long_term_archive') THEN
        PERFORM refuse('long_term_archive_transfer: the destination is no long-term archive');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER long_term_archive_transfer_birth BEFORE INSERT ON long_term_archive_transfer
    FOR EACH ROW EXECUTE FUNCTION long_term_archive_transfer_birth();

CREATE FUNCTION raw_data_package_birth() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.state <> 'waiting' THEN
        PERFORM refuse('raw_data_package: it starts waiting');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER raw_data_package_birth BEFORE INSERT ON raw_data_package
    FOR EACH ROW EXECUTE FUNCTION raw_data_package_birth();

-- ---- legal changes of status

-- What both kinds of work have in common. `ended` is whether this row's fence has its attempt already.
CREATE FUNCTION work_change(what TEXT, old_status TEXT, new_status TEXT, old_fence BIGINT, new_fence BIGINT,
    old_attempt BIGINT, new_attempt BIGINT, ended BOOLEAN) RETURNS void LANGUAGE plpgsql AS $$
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
    -- A lease that was lost may come back while nobody has claimed the row; an attempt that has ended may not.
    IF old_status IN ('pending', 'scheduled') AND new_status = 'in_progress' AND new_fence = old_fence
        AND (old_fence = 0 OR ended) THEN
        PERFORM refuse(what || ': a row is begun by a claim, and an attempt that ended does not come back');
    END IF;
    IF new_status = 'completed' AND old_status <> 'completed' AND old_fence = 0 THEN
        PERFORM refuse(what || ': nobody has claimed it');
    END IF;
END $$;

CREATE FUNCTION data_transfer_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
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
            AND NOT verified_copy(r.package_id, NEW.destination_location_id)) THEN
        PERFORM refuse(
            'data_transfer: completed needs an equal verification_record and a verified copy of every package');
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER data_transfer_change BEFORE UPDATE ON data_transfer
    FOR EACH ROW EXECUTE FUNCTION data_transfer_change();

CREATE FUNCTION long_term_archive_transfer_change() RETURNS trigger LANGUAGE plpgsql
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
        AND NOT verified_copy(NEW.package_id, NEW.destination_location_id) THEN
        PERFORM refuse('long_term_archive_transfer: completed needs an equal verification_record and a verified copy');
    END IF;
    -- A person who retries it gives its workers a new chance.
    IF OLD.status = 'failed' AND NEW.status = 'pending' THEN
        NEW.losses := 0;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER long_term_archive_transfer_change BEFORE UPDATE ON long_term_archive_transfer
    FOR EACH ROW EXECUTE FUNCTION long_term_archive_transfer_change();

CREATE FUNCTION raw_data_package_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.state <> OLD.state AND NOT (
        (OLD.state = 'waiting' AND NEW.state IN ('transferring', 'archived', 'failed'))
        OR (OLD.state = 'transferring' AND NEW.state IN ('waiting', 'archived', 'failed'))
        OR (OLD.state = 'archived' AND NEW.state = 'failed')
        OR (OLD.state = 'failed' AND NEW.state IN ('waiting', 'transferring', 'archived'))) THEN
        PERFORM refuse('raw_data_package: illegal change of state');
    END IF;
    IF NEW.state = 'archived' AND OLD.state <> 'archived' AND (
        NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id)
        OR EXISTS (SELECT 1 FROM archive_requirement q JOIN data_location l ON l.id = q.location_id
            WHERE q.package_id = NEW.id
                AND NOT (l.location_type = 'long_term_archive' AND verified_copy(NEW.id, q.location_id)))) THEN
        PERFORM refuse('raw_data_package: archived needs a verified copy in every archive that is required');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER raw_data_package_change BEFORE UPDATE OF state ON raw_data_package
    FOR EACH ROW EXECUTE FUNCTION raw_data_package_change();

-- ---- fenced evidence: what an overtaken owner says is refused

-- The row is locked, so that no claim can pass between this look and the commit.
CREATE FUNCTION verification_record_fence() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    fits BOOLEAN := TRUE;
BEGIN
    IF NEW.data_transfer_id IS NOT NULL THEN
        SELECT t.fence = NEW.fence AND t.status NOT IN ('completed', 'failed')
                AND NEW.location_id IN (t.origin_location_id, t.destination_location_id)
                AND EXISTS (SELECT 1 FROM transfer_request r WHERE r.package_id = NEW.package_id
                    AND r.data_transfer_package_id = t.data_transfer_package_id)
            INTO fits FROM data_transfer t WHERE t.id = NEW.data_transfer_id FOR NO KEY UPDATE;
    ELSIF NEW.long_term_archive_transfer_id IS NOT NULL THEN
        SELECT t.fence = NEW.fence AND t.status NOT IN ('completed', 'failed') AND t.package_id = NEW.package_id
                AND NEW.location_id IN (t.origin_location_id, t.destination_location_id)
            INTO fits FROM long_term_archive_transfer t WHERE t.id = NEW.long_term_archive_transfer_id
            FOR NO KEY UPDATE;
    END IF;
    IF fits IS NOT TRUE THEN
        PERFORM refuse('verification_record: the fence was overtaken, or it is not of this work');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER verification_record_fence BEFORE INSERT ON verification_record
    FOR EACH ROW EXECUTE FUNCTION verification_record_fence();

CREATE FUNCTION attempt_fence() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
DECLARE
    highest BIGINT;
BEGIN
    IF NEW.data_transfer_id IS NOT NULL THEN
        SELECT t.fence INTO highest FROM data_transfer t WHERE t.id = NEW.data_transfer_id FOR NO KEY UPDATE;
    ELSE
        SELECT t.fence INTO highest FROM long_term_archive_transfer t WHERE t.id = NEW.long_term_archive_transfer_id
            FOR NO KEY UPDATE;
    END IF;
    IF NEW.fence IS DISTINCT FROM highest THEN
        PERFORM refuse('attempt: the fence was overtaken');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER attempt_fence BEFORE INSERT ON attempt FOR EACH ROW EXECUTE FUNCTION attempt_fence();

-- ---- limits, counted over all rows: a worker's login sees a part of them

CREATE FUNCTION running_on_route(route BIGINT) RETURNS BIGINT LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT count(*) FROM data_transfer t WHERE t.status = 'in_progress' AND t.route_id = route
$$;

CREATE FUNCTION running_at_location(location BIGINT) RETURNS BIGINT LANGUAGE sql STABLE
    SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
    SELECT (SELECT count(*) FROM data_transfer t
            WHERE t.status = 'in_progress' AND location IN (t.origin_location_id, t.destination_location_id))
        + (SELECT count(*) FROM long_term_archive_transfer t
            WHERE t.status = 'in_progress' AND location IN (t.origin_location_id, t.destination_location_id))
$$;

-- ---- who is woken. A notification is sent with the commit, and equal ones of a transaction are one. Completions send
-- none: commits that notify wait for each other.

CREATE FUNCTION wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('ccat_xfer', TG_ARGV[0]);
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_wakes AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION wake('outbox');
CREATE TRIGGER intake_wakes AFTER INSERT ON intake FOR EACH STATEMENT EXECUTE FUNCTION wake('pending');
CREATE TRIGGER transfer_request_wakes AFTER INSERT ON transfer_request
    FOR EACH STATEMENT EXECUTE FUNCTION wake('pending');
CREATE TRIGGER data_transfer_born_wakes AFTER INSERT ON data_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION wake('pending');
CREATE TRIGGER data_transfer_wakes AFTER UPDATE ON data_transfer FOR EACH ROW
    WHEN ((NEW.ready AND NOT OLD.ready) OR (NEW.status = 'pending' AND OLD.status <> 'pending'))
    EXECUTE FUNCTION wake('pending');
CREATE TRIGGER data_transfer_cancel_wakes AFTER UPDATE ON data_transfer FOR EACH ROW
    WHEN (NEW.cancel_requested AND NOT OLD.cancel_requested) EXECUTE FUNCTION wake('cancel');
CREATE TRIGGER long_term_archive_transfer_born_wakes AFTER INSERT ON long_term_archive_transfer
    FOR EACH STATEMENT EXECUTE FUNCTION wake('pending');
CREATE TRIGGER long_term_archive_transfer_wakes AFTER UPDATE ON long_term_archive_transfer FOR EACH ROW
    WHEN (NEW.status = 'pending' AND OLD.status <> 'pending') EXECUTE FUNCTION wake('pending');
CREATE TRIGGER long_term_archive_transfer_cancel_wakes AFTER UPDATE ON long_term_archive_transfer FOR EACH ROW
    WHEN (NEW.cancel_requested AND NOT OLD.cancel_requested) EXECUTE FUNCTION wake('cancel');

-- ---- what follows from a change

CREATE FUNCTION data_transfer_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO event (entity, entity_id, to_state, actor, fence, reason)
        VALUES (TG_TABLE_NAME, NEW.id, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
        RETURN NULL;
    END IF;
    IF NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.cancel_requested <> OLD.cancel_requested THEN
        INSERT INTO event (entity, entity_id, from_state, to_state, actor, fence, reason)
        VALUES (TG_TABLE_NAME, NEW.id, OLD.status, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
    END IF;
    IF TG_TABLE_NAME = 'data_transfer' AND NEW.status = 'completed' AND OLD.status <> 'completed' THEN
        UPDATE data_transfer SET ready = TRUE, next_attempt_at = now_us(), updated_at = now_us()
        WHERE waits_for = NEW.id AND NOT ready;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER data_transfer_moved AFTER INSERT OR UPDATE ON data_transfer
    FOR EACH ROW EXECUTE FUNCTION data_transfer_moved();
CREATE TRIGGER long_term_archive_transfer_moved AFTER INSERT OR UPDATE ON long_term_archive_transfer
    FOR EACH ROW EXECUTE FUNCTION data_transfer_moved();

CREATE FUNCTION raw_data_package_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO event (entity, entity_id, to_state, actor, reason)
        VALUES ('raw_data_package', NEW.id, NEW.state, NEW.changed_by, NEW.change_reason);
    ELSIF NEW.state <> OLD.state THEN
        INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason)
        VALUES ('raw_data_package', NEW.id, OLD.state, NEW.state, NEW.changed_by, NEW.change_reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER raw_data_package_moved AFTER INSERT OR UPDATE ON raw_data_package
    FOR EACH ROW EXECUTE FUNCTION raw_data_package_moved();

CREATE FUNCTION physical_copy_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO event (entity, entity_id, to_state, actor, reason) VALUES
            ('physical_copy', NEW.id, NEW.status || ' ' || NEW.verification, NEW.changed_by, NEW.change_reason);
    ELSIF NEW.status <> OLD.status OR NEW.verification <> OLD.verification THEN
        INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
            ('physical_copy', NEW.id, OLD.status || ' ' || OLD.verification, NEW.status || ' ' || NEW.verification,
            NEW.changed_by, NEW.change_reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER physical_copy_moved AFTER INSERT OR UPDATE ON physical_copy
    FOR EACH ROW EXECUTE FUNCTION physical_copy_moved();

CREATE FUNCTION switch_state(active BOOLEAN, paused BOOLEAN) RETURNS TEXT LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN NOT active THEN 'inactive' WHEN paused THEN 'paused' ELSE 'active' END;

CREATE FUNCTION data_location_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.active <> OLD.active OR NEW.paused <> OLD.paused THEN
        INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
            ('data_location', NEW.id, switch_state(OLD.active, OLD.paused), switch_state(NEW.active, NEW.paused),
            NEW.changed_by, NEW.change_reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER data_location_moved AFTER UPDATE ON data_location
    FOR EACH ROW EXECUTE FUNCTION data_location_moved();

CREATE FUNCTION data_transfer_route_moved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = ccat_xfer, pg_temp AS $$
BEGIN
    IF NEW.active <> OLD.active OR NEW.paused <> OLD.paused OR NEW.breaker_state <> OLD.breaker_state THEN
        INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
            ('data_transfer_route', NEW.id, switch_state(OLD.active, OLD.paused) || ' ' || OLD.breaker_state,
            switch_state(NEW.active, NEW.paused) || ' ' || NEW.breaker_state, NEW.changed_by, NEW.change_reason);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER data_transfer_route_moved AFTER UPDATE ON data_transfer_route
    FOR EACH ROW EXECUTE FUNCTION data_transfer_route_moved();
