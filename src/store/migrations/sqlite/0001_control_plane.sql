-- The control plane's tables. What each holds, who writes it and why each constraint holds stands in the module doc of
-- `store`; this file and its PostgreSQL sibling say the same thing twice.
-- Times are microseconds since the Unix epoch. Flags are 0 or 1. Sizes are bytes.

CREATE TABLE site (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    short_name TEXT NOT NULL UNIQUE
        CHECK (length(short_name) BETWEEN 1 AND 40 AND short_name NOT GLOB '*[^a-z0-9_]*' AND short_name GLOB '[a-z]*'),
    location TEXT NOT NULL DEFAULT '',
    active INTEGER NOT NULL DEFAULT 1 CHECK (active IN (0, 1)),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
) STRICT;

CREATE TABLE peer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    address TEXT NOT NULL CHECK (length(address) BETWEEN 1 AND 300),
    fingerprint TEXT NOT NULL CHECK (length(fingerprint) BETWEEN 1 AND 200),
    active INTEGER NOT NULL DEFAULT 1 CHECK (active IN (0, 1)),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
) STRICT;
CREATE UNIQUE INDEX peer_fingerprint ON peer (fingerprint) WHERE active;

CREATE TABLE data_location (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    site_id INTEGER NOT NULL REFERENCES site (id),
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 60 AND name NOT GLOB '*[^a-z0-9_]*' AND name GLOB '[a-z]*'),
    -- site.short_name || '_' || name. Unique by itself: the sites "a" and "a_b" could else share a queue.
    queue_stem TEXT NOT NULL UNIQUE,
    location_type TEXT NOT NULL CHECK (location_type IN ('source', 'buffer', 'long_term_archive', 'processing')),
    storage_type TEXT NOT NULL CHECK (storage_type IN ('disk', 's3', 'tape')),
    priority INTEGER NOT NULL DEFAULT 1 CHECK (priority BETWEEN 1 AND 1000),
    peer_id INTEGER REFERENCES peer (id),
    active INTEGER NOT NULL DEFAULT 1 CHECK (active IN (0, 1)),
    paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    capacity_bytes INTEGER CHECK (capacity_bytes > 0),
    keep_free_bytes INTEGER NOT NULL DEFAULT 0 CHECK (keep_free_bytes >= 0),
    free_bytes INTEGER CHECK (free_bytes >= 0),
    free_bytes_at INTEGER,
    rate_limit_bytes_per_s INTEGER CHECK (rate_limit_bytes_per_s > 0),
    max_concurrent INTEGER CHECK (max_concurrent > 0),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (site_id, name),
    UNIQUE (id, site_id),
    CHECK ((free_bytes IS NULL) = (free_bytes_at IS NULL))
) STRICT;

CREATE TABLE data_transfer_route (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 100),
    route_type TEXT NOT NULL CHECK (route_type IN ('direct', 'relay', 'custom')),
    origin_site_id INTEGER NOT NULL REFERENCES site (id),
    destination_site_id INTEGER NOT NULL REFERENCES site (id),
    origin_location_id INTEGER,
    destination_location_id INTEGER,
    via_site_id INTEGER REFERENCES site (id),
    method TEXT NOT NULL CHECK (method IN ('xfer', 'bbcp')),
    dialer TEXT NOT NULL CHECK (dialer IN ('origin', 'destination')),
    transport TEXT NOT NULL DEFAULT 'auto' CHECK (transport IN ('auto', 'quic', 'tcp', 'ssh')),
    rate_limit_bytes_per_s INTEGER CHECK (rate_limit_bytes_per_s > 0),
    streams INTEGER CHECK (streams BETWEEN 1 AND 256),
    max_concurrent INTEGER CHECK (max_concurrent > 0),
    active INTEGER NOT NULL DEFAULT 1 CHECK (active IN (0, 1)),
    paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    breaker_state TEXT NOT NULL DEFAULT 'closed' CHECK (breaker_state IN ('closed', 'open', 'half_open')),
    breaker_failures INTEGER NOT NULL DEFAULT 0 CHECK (breaker_failures >= 0),
    breaker_trips INTEGER NOT NULL DEFAULT 0 CHECK (breaker_trips >= 0),
    breaker_until INTEGER,
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
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
) STRICT;
-- One way from here to there: which of two equal routes is meant would else depend on chance.
CREATE UNIQUE INDEX data_transfer_route_way ON data_transfer_route
    (origin_site_id, destination_site_id, coalesce(origin_location_id, 0), coalesce(destination_location_id, 0))
    WHERE active;

CREATE TABLE worker (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 200),
    boot_nonce TEXT NOT NULL CHECK (length(boot_nonce) > 0),
    login TEXT NOT NULL DEFAULT '',
    host TEXT NOT NULL,
    process_id INTEGER NOT NULL,
    version TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'stopped')),
    slots INTEGER NOT NULL CHECK (slots > 0),
    lease_us INTEGER NOT NULL CHECK (lease_us BETWEEN 1000000 AND 3600000000),
    running TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(running)),
    started_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    heartbeat_at INTEGER NOT NULL,
    -- The boot whose clock `heartbeat_until` is read from, as with leases.
    heartbeat_boot TEXT NOT NULL,
    heartbeat_until INTEGER NOT NULL
) STRICT;

CREATE TABLE worker_queue (
    worker_id INTEGER NOT NULL REFERENCES worker (id),
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    operation TEXT NOT NULL CHECK (operation IN ('raw_data_package_creation', 'data_transfer_package_creation',
        'data_transfer', 'data_transfer_unpacking', 'long_term_archive_transfer', 'staging', 'deletion')),
    max_concurrent INTEGER CHECK (max_concurrent > 0),
    PRIMARY KEY (worker_id, location_id, operation)
) STRICT, WITHOUT ROWID;
CREATE INDEX worker_queue_by_location ON worker_queue (location_id, operation);

-- A PostgreSQL login and what it may reach. Kept on SQLite too, where whoever opens the file reaches all of it, so that
-- both schemas hold the same topology.
CREATE TABLE worker_login (
    login TEXT NOT NULL CHECK (length(login) > 0),
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    PRIMARY KEY (login, location_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE raw_data_package (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 4096),
    kind TEXT NOT NULL CHECK (kind IN ('file', 'tree')),
    origin_location_id INTEGER NOT NULL REFERENCES data_location (id),
    relative_path BLOB NOT NULL CHECK (length(relative_path) BETWEEN 1 AND 4095),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    file_count INTEGER NOT NULL CHECK (file_count >= 0),
    -- The blake3 digest of a file, the tree digest of a tree: equal to its row of package_digest.
    identity BLOB NOT NULL CHECK (length(identity) = 32),
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'transferring', 'archived', 'failed')),
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    policy TEXT NOT NULL DEFAULT 'transfer_only' CHECK (policy IN ('transfer_only', 'one_archive', 'every_archive')),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (origin_location_id, relative_path, identity),
    CHECK (kind = 'tree' OR file_count = 1)
) STRICT;
CREATE INDEX raw_data_package_state ON raw_data_package (state, id);

CREATE TABLE package_digest (
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    algorithm TEXT NOT NULL CHECK (algorithm IN ('blake3', 'tree', 'sha256')),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (package_id, algorithm)
) STRICT, WITHOUT ROWID;

CREATE TABLE archive_requirement (
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    PRIMARY KEY (package_id, location_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE data_transfer_package (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin_location_id INTEGER NOT NULL REFERENCES data_location (id),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    package_count INTEGER NOT NULL CHECK (package_count > 0),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    created_by TEXT NOT NULL CHECK (length(created_by) > 0)
) STRICT;

CREATE TABLE transfer_request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    origin_location_id INTEGER NOT NULL REFERENCES data_location (id),
    destination_site_id INTEGER REFERENCES site (id),
    destination_location_id INTEGER,
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    data_transfer_package_id INTEGER REFERENCES data_transfer_package (id),
    withdrawn INTEGER NOT NULL DEFAULT 0 CHECK (withdrawn IN (0, 1)),
    -- Why the planner could not place it the last time, for `explain`.
    obstacle TEXT,
    requested_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    requested_by TEXT NOT NULL CHECK (length(requested_by) > 0),
    planned_at INTEGER,
    -- The planner does not look at it before; one that fits nowhere comes again later.
    not_before INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    -- What may go into one bundle. One column, so that the groups there are cost one step of the index each.
    planning_group TEXT GENERATED ALWAYS AS (CAST(origin_location_id AS TEXT) || '/'
        || CAST(coalesce(destination_site_id, 0) AS TEXT) || '/'
        || CAST(coalesce(destination_location_id, 0) AS TEXT) || '/' || CAST(priority AS TEXT)) STORED,
    FOREIGN KEY (destination_location_id, destination_site_id) REFERENCES data_location (id, site_id),
    CHECK (destination_location_id IS NULL OR destination_site_id IS NOT NULL),
    CHECK (destination_location_id IS NULL OR destination_location_id <> origin_location_id),
    CHECK ((planned_at IS NULL) = (data_transfer_package_id IS NULL)),
    CHECK (data_transfer_package_id IS NULL OR NOT withdrawn)
) STRICT;
CREATE UNIQUE INDEX transfer_request_once ON transfer_request
    (package_id, coalesce(destination_site_id, 0), coalesce(destination_location_id, 0)) WHERE NOT withdrawn;
CREATE INDEX transfer_request_unplanned ON transfer_request (planning_group, not_before, id)
    WHERE data_transfer_package_id IS NULL AND NOT withdrawn;
-- Not of those without a bundle: SQLite would take it for a look at what is unplanned, and walk.
CREATE INDEX transfer_request_members ON transfer_request (data_transfer_package_id, package_id)
    WHERE data_transfer_package_id IS NOT NULL;

CREATE TABLE data_transfer (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    data_transfer_package_id INTEGER NOT NULL REFERENCES data_transfer_package (id),
    route_id INTEGER NOT NULL REFERENCES data_transfer_route (id),
    relay_route_id INTEGER REFERENCES data_transfer_route (id),
    origin_location_id INTEGER NOT NULL REFERENCES data_location (id),
    destination_location_id INTEGER NOT NULL REFERENCES data_location (id),
    queue_location_id INTEGER NOT NULL REFERENCES data_location (id),
    hop INTEGER NOT NULL DEFAULT 1 CHECK (hop BETWEEN 1 AND 8),
    waits_for INTEGER REFERENCES data_transfer (id),
    -- True once nothing is waited for; kept by a trigger, so that the planner's index has no row that cannot run.
    ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'scheduled', 'in_progress', 'completed', 'failed')),
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    retry_count INTEGER NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_attempt_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    owner INTEGER REFERENCES worker (id),
    lease_until INTEGER,
    lease_boot TEXT,
    claimed_at INTEGER,
    -- Whose the present fence is; it outlives owner, which a lost lease clears.
    claimed_by TEXT,
    -- Leases lost since the last outcome, or since a person retried it.
    losses INTEGER NOT NULL DEFAULT 0 CHECK (losses >= 0),
    bytes_done INTEGER NOT NULL DEFAULT 0 CHECK (bytes_done >= 0),
    bytes_total INTEGER NOT NULL CHECK (bytes_total >= 0),
    error_class TEXT CHECK (error_class IN ('network', 'remote_busy', 'authentication', 'no_space', 'missing_source',
        'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs', 'configuration',
        'lost_worker', 'cancelled', 'bug')),
    error_text TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    scheduled_at INTEGER,
    finished_at INTEGER,
    -- Whether a manager has drawn the consequences of its end.
    settled INTEGER NOT NULL DEFAULT 0 CHECK (settled IN (0, 1)),
    -- What may run, or not, together: pause, breaker and limits are the same for all of it.
    lane TEXT GENERATED ALWAYS AS (CAST(queue_location_id AS TEXT) || '/' || CAST(route_id AS TEXT) || '/'
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
) STRICT;
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
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    origin_location_id INTEGER NOT NULL REFERENCES data_location (id),
    destination_location_id INTEGER NOT NULL REFERENCES data_location (id),
    queue_location_id INTEGER NOT NULL REFERENCES data_location (id),
    status TEXT NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'scheduled', 'in_progress', 'completed', 'failed')),
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    retry_count INTEGER NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_attempt_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    owner INTEGER REFERENCES worker (id),
    lease_until INTEGER,
    lease_boot TEXT,
    claimed_at INTEGER,
    -- Whose the present fence is; it outlives owner, which a lost lease clears.
    claimed_by TEXT,
    -- Leases lost since the last outcome, or since a person retried it.
    losses INTEGER NOT NULL DEFAULT 0 CHECK (losses >= 0),
    bytes_done INTEGER NOT NULL DEFAULT 0 CHECK (bytes_done >= 0),
    bytes_total INTEGER NOT NULL CHECK (bytes_total >= 0),
    error_class TEXT CHECK (error_class IN ('network', 'remote_busy', 'authentication', 'no_space', 'missing_source',
        'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs', 'configuration',
        'lost_worker', 'cancelled', 'bug')),
    error_text TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    scheduled_at INTEGER,
    finished_at INTEGER,
    -- Whether a manager has drawn the consequences of its end.
    settled INTEGER NOT NULL DEFAULT 0 CHECK (settled IN (0, 1)),
    -- What may run, or not, together: pause, breaker and limits are the same for all of it.
    lane TEXT GENERATED ALWAYS AS (CAST(queue_location_id AS TEXT) || '/' || CAST(origin_location_id AS TEXT) || '/'
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
) STRICT;
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
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    path BLOB NOT NULL CHECK (length(path) BETWEEN 1 AND 4095),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    status TEXT NOT NULL CHECK (status IN ('present', 'staged', 'deletion_possible', 'deletion_scheduled',
        'deletion_in_progress', 'deleted', 'deletion_failed')),
    verification TEXT NOT NULL CHECK (verification IN ('registered', 'verified', 'suspect', 'corrupt')),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    changed_by TEXT NOT NULL CHECK (length(changed_by) > 0),
    change_reason TEXT NOT NULL,
    UNIQUE (package_id, location_id)
) STRICT;
CREATE INDEX physical_copy_by_location ON physical_copy (location_id, status);

CREATE TABLE verification_record (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    package_id INTEGER NOT NULL REFERENCES raw_data_package (id),
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    data_transfer_id INTEGER REFERENCES data_transfer (id),
    long_term_archive_transfer_id INTEGER REFERENCES long_term_archive_transfer (id),
    fence INTEGER CHECK (fence > 0),
    algorithm TEXT NOT NULL CHECK (algorithm IN ('blake3', 'tree', 'sha256')),
    expected_digest BLOB NOT NULL CHECK (length(expected_digest) = 32),
    found_digest BLOB NOT NULL CHECK (length(found_digest) = 32),
    expected_size_bytes INTEGER NOT NULL CHECK (expected_size_bytes >= 0),
    found_size_bytes INTEGER NOT NULL CHECK (found_size_bytes >= 0),
    method TEXT NOT NULL CHECK (method IN ('received', 'read_back', 'found_equal', 'scrub')),
    medium TEXT NOT NULL CHECK (medium IN ('disk', 's3', 'tape')),
    cached INTEGER NOT NULL CHECK (cached IN (0, 1)),
    host TEXT NOT NULL CHECK (length(host) > 0),
    version TEXT NOT NULL CHECK (length(version) > 0),
    receiver_key TEXT,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    CHECK (data_transfer_id IS NULL OR long_term_archive_transfer_id IS NULL),
    CHECK ((data_transfer_id IS NULL AND long_term_archive_transfer_id IS NULL) = (fence IS NULL)),
    CHECK (ended_at >= started_at)
) STRICT;
CREATE INDEX verification_record_of ON verification_record (package_id, location_id);

CREATE TABLE attempt (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    data_transfer_id INTEGER REFERENCES data_transfer (id),
    long_term_archive_transfer_id INTEGER REFERENCES long_term_archive_transfer (id),
    fence INTEGER NOT NULL CHECK (fence > 0),
    number INTEGER NOT NULL CHECK (number > 0),
    worker_id INTEGER REFERENCES worker (id),
    worker_name TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('completed', 'handed_back', 'network', 'remote_busy', 'authentication',
        'no_space', 'missing_source', 'source_changed', 'corrupt_in_flight', 'corrupt_at_source', 'destination_differs',
        'configuration', 'lost_worker', 'cancelled', 'bug')),
    error_chain TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(error_chain)),
    bytes_done INTEGER NOT NULL CHECK (bytes_done >= 0),
    log TEXT NOT NULL DEFAULT '',
    recorded_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    CHECK ((data_transfer_id IS NULL) <> (long_term_archive_transfer_id IS NULL))
) STRICT;
-- One fence ends once: an outcome that is replayed meets its own row.
CREATE UNIQUE INDEX attempt_of_transfer ON attempt (data_transfer_id, fence) WHERE data_transfer_id IS NOT NULL;
CREATE UNIQUE INDEX attempt_of_archive ON attempt (long_term_archive_transfer_id, fence)
    WHERE long_term_archive_transfer_id IS NOT NULL;

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    entity TEXT NOT NULL CHECK (entity IN ('raw_data_package', 'data_transfer', 'long_term_archive_transfer',
        'physical_copy', 'data_location', 'data_transfer_route', 'worker', 'topology')),
    entity_id INTEGER NOT NULL,
    from_state TEXT,
    to_state TEXT NOT NULL,
    actor TEXT NOT NULL CHECK (length(actor) > 0),
    fence INTEGER,
    at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX event_of ON event (entity, entity_id, id);

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    location_id INTEGER NOT NULL REFERENCES data_location (id),
    operation TEXT NOT NULL CHECK (operation IN ('raw_data_package_creation', 'data_transfer_package_creation',
        'data_transfer', 'data_transfer_unpacking', 'long_term_archive_transfer', 'staging', 'deletion')),
    work_id INTEGER NOT NULL,
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    tries INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    last_error TEXT,
    sent_at INTEGER
) STRICT;
-- Fewest tries first: a hint that no broker takes must not stand in front of the others.
CREATE INDEX outbox_unsent ON outbox (tries, id) WHERE sent_at IS NULL;
CREATE INDEX outbox_of ON outbox (location_id, operation, id);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    body BLOB NOT NULL,
    headers TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(headers)),
    reason TEXT NOT NULL CHECK (length(reason) > 0),
    at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    resolved_at INTEGER,
    resolved_by TEXT,
    CHECK ((resolved_at IS NULL) = (resolved_by IS NULL))
) STRICT;
CREATE INDEX dead_letter_open ON dead_letter (id) WHERE resolved_at IS NULL;

CREATE TABLE round_robin (
    route_group TEXT PRIMARY KEY CHECK (length(route_group) > 0),
    last_site_id INTEGER REFERENCES site (id),
    turn INTEGER NOT NULL DEFAULT 0 CHECK (turn >= 0),
    updated_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
) STRICT, WITHOUT ROWID;

-- Starts per period for one queue, or for all ('*'). A start costs 1,000,000 of tokens_micro.
CREATE TABLE rate_limit (
    scope TEXT PRIMARY KEY CHECK (length(scope) > 0),
    starts INTEGER NOT NULL CHECK (starts > 0),
    period_us INTEGER NOT NULL CHECK (period_us IN (1000000, 60000000, 3600000000)),
    tokens_micro INTEGER NOT NULL CHECK (tokens_micro >= 0),
    refilled_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The documented INSERT for other programs: names and digests only, no ids.
CREATE TABLE intake (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin_site TEXT NOT NULL,
    origin_location TEXT NOT NULL,
    destination_site TEXT NOT NULL,
    destination_location TEXT,
    relative_path BLOB NOT NULL CHECK (length(relative_path) BETWEEN 1 AND 4095),
    kind TEXT NOT NULL CHECK (kind IN ('file', 'tree')),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    file_count INTEGER NOT NULL DEFAULT 1 CHECK (file_count >= 0),
    digest TEXT NOT NULL CHECK (length(digest) = 64 AND digest NOT GLOB '*[^0-9a-f]*'),
    sha256 TEXT CHECK (length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'),
    priority INTEGER NOT NULL DEFAULT 4 CHECK (priority BETWEEN 0 AND 9),
    policy TEXT NOT NULL DEFAULT 'transfer_only' CHECK (policy IN ('transfer_only', 'one_archive', 'every_archive')),
    submitted_by TEXT NOT NULL DEFAULT 'intake' CHECK (length(submitted_by) > 0),
    submitted_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER)),
    state TEXT NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'accepted', 'refused')),
    package_id INTEGER REFERENCES raw_data_package (id),
    refusal TEXT,
    decided_at INTEGER,
    CHECK ((state = 'new') = (decided_at IS NULL)),
    CHECK ((state = 'accepted') = (package_id IS NOT NULL)),
    CHECK ((state = 'refused') = (refusal IS NOT NULL))
) STRICT;
CREATE INDEX intake_new ON intake (id) WHERE state = 'new';

-- ---- names of queues stay

CREATE TRIGGER site_names_stay BEFORE UPDATE OF short_name ON site WHEN NEW.short_name <> OLD.short_name
BEGIN SELECT RAISE(ABORT, 'site: the short name is part of queue names and cannot change'); END;

CREATE TRIGGER data_location_names_stay BEFORE UPDATE OF site_id, name, queue_stem ON data_location
WHEN NEW.site_id <> OLD.site_id OR NEW.name <> OLD.name OR NEW.queue_stem <> OLD.queue_stem
BEGIN SELECT RAISE(ABORT, 'data_location: site and name are part of queue names and cannot change'); END;

CREATE TRIGGER data_location_queue_stem BEFORE INSERT ON data_location
WHEN NEW.queue_stem IS NOT (SELECT short_name || '_' || NEW.name FROM site WHERE id = NEW.site_id)
BEGIN SELECT RAISE(ABORT, 'data_location: queue_stem is not {short_name of the site}_{name}'); END;

-- ---- what never changes once it is written

CREATE TRIGGER raw_data_package_stays BEFORE UPDATE ON raw_data_package
WHEN NEW.kind <> OLD.kind OR NEW.origin_location_id <> OLD.origin_location_id OR NEW.relative_path <> OLD.relative_path
    OR NEW.size_bytes <> OLD.size_bytes OR NEW.file_count <> OLD.file_count OR NEW.identity <> OLD.identity
BEGIN SELECT RAISE(ABORT, 'raw_data_package: what was registered cannot change'); END;

CREATE TRIGGER data_transfer_package_stays BEFORE UPDATE ON data_transfer_package
BEGIN SELECT RAISE(ABORT, 'data_transfer_package: a bundle cannot change'); END;

CREATE TRIGGER transfer_request_stays BEFORE UPDATE ON transfer_request
WHEN NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
    OR NEW.destination_site_id IS NOT OLD.destination_site_id
    OR NEW.destination_location_id IS NOT OLD.destination_location_id
    OR (OLD.data_transfer_package_id IS NOT NULL
        AND NEW.data_transfer_package_id IS NOT OLD.data_transfer_package_id)
BEGIN SELECT RAISE(ABORT, 'transfer_request: what was requested, and the bundle it went into, cannot change'); END;

-- A bundle that a transfer refers to is closed.
CREATE TRIGGER transfer_request_bundle BEFORE UPDATE OF data_transfer_package_id ON transfer_request
WHEN NEW.data_transfer_package_id IS NOT NULL AND OLD.data_transfer_package_id IS NULL
    AND (EXISTS (SELECT 1 FROM data_transfer t WHERE t.data_transfer_package_id = NEW.data_transfer_package_id)
        OR NEW.origin_location_id IS NOT
            (SELECT origin_location_id FROM data_transfer_package WHERE id = NEW.data_transfer_package_id))
BEGIN SELECT RAISE(ABORT, 'transfer_request: the bundle is closed, or starts elsewhere'); END;

CREATE TRIGGER transfer_request_insert BEFORE INSERT ON transfer_request
WHEN NEW.data_transfer_package_id IS NOT NULL OR NOT EXISTS (
    SELECT 1 FROM raw_data_package p JOIN package_digest d ON d.package_id = p.id
    WHERE p.id = NEW.package_id AND d.algorithm = CASE p.kind WHEN 'file' THEN 'blake3' ELSE 'tree' END
        AND d.digest = p.identity)
BEGIN SELECT RAISE(ABORT, 'transfer_request: it starts unplanned, and its package has its blake3 or tree digest'); END;

CREATE TRIGGER data_transfer_stays BEFORE UPDATE ON data_transfer
WHEN NEW.id <> OLD.id OR NEW.data_transfer_package_id <> OLD.data_transfer_package_id OR NEW.route_id <> OLD.route_id
    OR NEW.relay_route_id IS NOT OLD.relay_route_id OR NEW.origin_location_id <> OLD.origin_location_id
    OR NEW.destination_location_id <> OLD.destination_location_id OR NEW.queue_location_id <> OLD.queue_location_id
    OR NEW.hop <> OLD.hop OR NEW.waits_for IS NOT OLD.waits_for OR NEW.bytes_total <> OLD.bytes_total
BEGIN SELECT RAISE(ABORT, 'data_transfer: where it goes cannot change'); END;

CREATE TRIGGER long_term_archive_transfer_stays BEFORE UPDATE ON long_term_archive_transfer
WHEN NEW.id <> OLD.id OR NEW.package_id <> OLD.package_id OR NEW.origin_location_id <> OLD.origin_location_id
    OR NEW.destination_location_id <> OLD.destination_location_id OR NEW.queue_location_id <> OLD.queue_location_id
    OR NEW.bytes_total <> OLD.bytes_total
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: where it goes cannot change'); END;

CREATE TRIGGER physical_copy_stays BEFORE UPDATE ON physical_copy
WHEN NEW.package_id <> OLD.package_id OR NEW.location_id <> OLD.location_id
BEGIN SELECT RAISE(ABORT, 'physical_copy: package and location cannot change'); END;

-- ---- insert-only tables. REPLACE deletes without a delete trigger unless recursive_triggers is on; hence the third kind.

CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'event: rows are only inserted'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'event: rows are only inserted'); END;
CREATE TRIGGER event_no_replace BEFORE INSERT ON event WHEN EXISTS (SELECT 1 FROM event WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'event: rows are only inserted'); END;
CREATE TRIGGER verification_record_no_update BEFORE UPDATE ON verification_record
BEGIN SELECT RAISE(ABORT, 'verification_record: rows are only inserted'); END;
CREATE TRIGGER verification_record_no_delete BEFORE DELETE ON verification_record
BEGIN SELECT RAISE(ABORT, 'verification_record: rows are only inserted'); END;
CREATE TRIGGER verification_record_no_replace BEFORE INSERT ON verification_record
WHEN EXISTS (SELECT 1 FROM verification_record WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'verification_record: rows are only inserted'); END;
CREATE TRIGGER attempt_no_update BEFORE UPDATE ON attempt
BEGIN SELECT RAISE(ABORT, 'attempt: rows are only inserted'); END;
CREATE TRIGGER attempt_no_delete BEFORE DELETE ON attempt
BEGIN SELECT RAISE(ABORT, 'attempt: rows are only inserted'); END;
CREATE TRIGGER attempt_no_replace BEFORE INSERT ON attempt WHEN EXISTS (SELECT 1 FROM attempt a WHERE a.id = NEW.id
    OR (a.data_transfer_id = NEW.data_transfer_id AND a.fence = NEW.fence)
    OR (a.long_term_archive_transfer_id = NEW.long_term_archive_transfer_id AND a.fence = NEW.fence))
BEGIN SELECT RAISE(ABORT, 'attempt: rows are only inserted, and one fence ends once'); END;
CREATE TRIGGER package_digest_no_update BEFORE UPDATE ON package_digest
BEGIN SELECT RAISE(ABORT, 'package_digest: rows are only inserted'); END;
CREATE TRIGGER package_digest_no_delete BEFORE DELETE ON package_digest
BEGIN SELECT RAISE(ABORT, 'package_digest: rows are only inserted'); END;
CREATE TRIGGER package_digest_no_replace BEFORE INSERT ON package_digest
WHEN EXISTS (SELECT 1 FROM package_digest WHERE package_id = NEW.package_id AND algorithm = NEW.algorithm)
BEGIN SELECT RAISE(ABORT, 'package_digest: rows are only inserted'); END;

CREATE TRIGGER raw_data_package_no_delete BEFORE DELETE ON raw_data_package
BEGIN SELECT RAISE(ABORT, 'raw_data_package: rows are never deleted'); END;
CREATE TRIGGER data_transfer_no_delete BEFORE DELETE ON data_transfer
BEGIN SELECT RAISE(ABORT, 'data_transfer: rows are never deleted'); END;
CREATE TRIGGER long_term_archive_transfer_no_delete BEFORE DELETE ON long_term_archive_transfer
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: rows are never deleted'); END;
CREATE TRIGGER physical_copy_no_delete BEFORE DELETE ON physical_copy
BEGIN SELECT RAISE(ABORT, 'physical_copy: rows are never deleted'); END;

-- ---- births

CREATE TRIGGER data_transfer_birth BEFORE INSERT ON data_transfer
WHEN NEW.status <> 'pending' OR NEW.fence <> 0 OR NEW.attempt <> 0 OR NEW.retry_count <> 0 OR NEW.bytes_done <> 0
    OR NEW.ready IS NOT (NEW.waits_for IS NULL
        OR EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.status = 'completed'))
BEGIN SELECT RAISE(ABORT, 'data_transfer: it starts pending, untried, and ready unless it waits'); END;

CREATE TRIGGER data_transfer_chain BEFORE INSERT ON data_transfer
WHEN NEW.waits_for IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.hop = NEW.hop - 1
        AND t.data_transfer_package_id = NEW.data_transfer_package_id
        AND t.destination_location_id = NEW.origin_location_id)
BEGIN SELECT RAISE(ABORT, 'data_transfer: it waits for the hop before it, of the same bundle, to where it starts'); END;

CREATE TRIGGER data_transfer_bundle BEFORE INSERT ON data_transfer
WHEN NOT EXISTS (
    SELECT 1 FROM data_transfer_package b WHERE b.id = NEW.data_transfer_package_id AND b.size_bytes = NEW.bytes_total
        AND b.package_count = (SELECT count(*) FROM transfer_request r WHERE r.data_transfer_package_id = b.id)
        AND b.size_bytes = (SELECT sum(p.size_bytes) FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id
            WHERE r.data_transfer_package_id = b.id)
        AND (NEW.hop > 1 OR b.origin_location_id = NEW.origin_location_id))
BEGIN SELECT RAISE(ABORT, 'data_transfer: its bundle has other sums, or starts elsewhere'); END;

CREATE TRIGGER long_term_archive_transfer_birth BEFORE INSERT ON long_term_archive_transfer
WHEN NEW.status <> 'pending' OR NEW.fence <> 0 OR NEW.attempt <> 0 OR NEW.retry_count <> 0 OR NEW.bytes_done <> 0
    OR NEW.bytes_total IS NOT (SELECT size_bytes FROM raw_data_package WHERE id = NEW.package_id)
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: it starts pending, untried, with the size of its package'); END;

CREATE TRIGGER long_term_archive_transfer_destination BEFORE INSERT ON long_term_archive_transfer
WHEN NOT EXISTS (SELECT 1 FROM data_location WHERE id = NEW.destination_location_id
    AND location_type = 'long_term_archive')
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: the destination is no long-term archive'); END;

CREATE TRIGGER raw_data_package_birth BEFORE INSERT ON raw_data_package WHEN NEW.state <> 'waiting'
BEGIN SELECT RAISE(ABORT, 'raw_data_package: it starts waiting'); END;

-- ---- legal changes of status

CREATE TRIGGER data_transfer_change BEFORE UPDATE OF status ON data_transfer
WHEN NEW.status <> OLD.status AND NOT (
    (OLD.status = 'pending' AND NEW.status IN ('scheduled', 'in_progress', 'completed', 'failed'))
    OR (OLD.status = 'scheduled' AND NEW.status IN ('pending', 'in_progress', 'completed', 'failed'))
    OR (OLD.status = 'in_progress' AND NEW.status IN ('pending', 'scheduled', 'completed', 'failed'))
    OR (OLD.status = 'failed' AND NEW.status = 'pending'))
BEGIN SELECT RAISE(ABORT, 'data_transfer: illegal change of status'); END;

CREATE TRIGGER data_transfer_fence BEFORE UPDATE ON data_transfer
WHEN NOT (NEW.fence = OLD.fence
        OR (NEW.fence = OLD.fence + 1 AND NEW.status = 'in_progress' AND OLD.status IN ('scheduled', 'in_progress')))
    OR NEW.attempt < OLD.attempt OR NEW.attempt > OLD.attempt + (NEW.fence - OLD.fence)
BEGIN SELECT RAISE(ABORT, 'data_transfer: only a claim raises the fence, by one'); END;

-- A lease that was lost may come back while nobody has claimed the row; an attempt that has ended may not.
CREATE TRIGGER data_transfer_revival BEFORE UPDATE OF status ON data_transfer
WHEN OLD.status IN ('pending', 'scheduled') AND NEW.status = 'in_progress' AND NEW.fence = OLD.fence
    AND (OLD.fence = 0 OR EXISTS (SELECT 1 FROM attempt a WHERE a.data_transfer_id = OLD.id AND a.fence = OLD.fence))
BEGIN SELECT RAISE(ABORT, 'data_transfer: a row is begun by a claim, and an attempt that ended does not come back'); END;

CREATE TRIGGER data_transfer_unclaimed BEFORE UPDATE OF status ON data_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND OLD.fence = 0
BEGIN SELECT RAISE(ABORT, 'data_transfer: nobody has claimed it'); END;

CREATE TRIGGER data_transfer_ready BEFORE UPDATE OF ready ON data_transfer
WHEN NEW.ready <> OLD.ready AND NOT (NEW.ready
    AND EXISTS (SELECT 1 FROM data_transfer t WHERE t.id = NEW.waits_for AND t.status = 'completed'))
BEGIN SELECT RAISE(ABORT, 'data_transfer: the hop before it is not completed'); END;

CREATE TRIGGER data_transfer_proof BEFORE UPDATE OF status ON data_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND EXISTS (
    SELECT 1 FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id
    WHERE r.data_transfer_package_id = NEW.data_transfer_package_id AND NOT (
        EXISTS (SELECT 1 FROM verification_record v JOIN package_digest d
                ON d.package_id = v.package_id AND d.algorithm = v.algorithm
            WHERE v.package_id = p.id AND v.location_id = NEW.destination_location_id
                AND v.found_digest = d.digest AND v.expected_digest = d.digest
                AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
        AND EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = p.id
            AND c.location_id = NEW.destination_location_id AND c.status = 'present' AND c.verification = 'verified')))
BEGIN SELECT RAISE(ABORT, 'data_transfer: completed needs an equal verification_record and a verified copy of every package'); END;

CREATE TRIGGER long_term_archive_transfer_change BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN NEW.status <> OLD.status AND NOT (
    (OLD.status = 'pending' AND NEW.status IN ('scheduled', 'in_progress', 'completed', 'failed'))
    OR (OLD.status = 'scheduled' AND NEW.status IN ('pending', 'in_progress', 'completed', 'failed'))
    OR (OLD.status = 'in_progress' AND NEW.status IN ('pending', 'scheduled', 'completed', 'failed'))
    OR (OLD.status = 'failed' AND NEW.status = 'pending'))
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: illegal change of status'); END;

CREATE TRIGGER long_term_archive_transfer_fence BEFORE UPDATE ON long_term_archive_transfer
WHEN NOT (NEW.fence = OLD.fence
        OR (NEW.fence = OLD.fence + 1 AND NEW.status = 'in_progress' AND OLD.status IN ('scheduled', 'in_progress')))
    OR NEW.attempt < OLD.attempt OR NEW.attempt > OLD.attempt + (NEW.fence - OLD.fence)
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: only a claim raises the fence, by one'); END;

CREATE TRIGGER long_term_archive_transfer_revival BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN OLD.status IN ('pending', 'scheduled') AND NEW.status = 'in_progress' AND NEW.fence = OLD.fence
    AND (OLD.fence = 0
        OR EXISTS (SELECT 1 FROM attempt a WHERE a.long_term_archive_transfer_id = OLD.id AND a.fence = OLD.fence))
BEGIN SELECT RAISE(ABORT,
    'long_term_archive_transfer: a row is begun by a claim, and an attempt that ended does not come back'); END;

CREATE TRIGGER long_term_archive_transfer_unclaimed BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND OLD.fence = 0
BEGIN SELECT RAISE(ABORT, 'long_term_archive_transfer: nobody has claimed it'); END;

CREATE TRIGGER long_term_archive_transfer_proof BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND NOT (
    EXISTS (SELECT 1 FROM verification_record v JOIN package_digest d
            ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        JOIN raw_data_package p ON p.id = v.package_id
        WHERE v.package_id = NEW.package_id AND v.location_id = NEW.destination_location_id
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
    AND EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = NEW.package_id
        AND c.location_id = NEW.destination_location_id AND c.status = 'present' AND c.verification = 'verified'))
BEGIN SELECT RAISE(ABORT,
    'long_term_archive_transfer: completed needs an equal verification_record and a verified copy'); END;

CREATE TRIGGER raw_data_package_change BEFORE UPDATE OF state ON raw_data_package
WHEN NEW.state <> OLD.state AND NOT (
    (OLD.state = 'waiting' AND NEW.state IN ('transferring', 'archived', 'failed'))
    OR (OLD.state = 'transferring' AND NEW.state IN ('waiting', 'archived', 'failed'))
    OR (OLD.state = 'archived' AND NEW.state = 'failed')
    OR (OLD.state = 'failed' AND NEW.state IN ('waiting', 'transferring', 'archived')))
BEGIN SELECT RAISE(ABORT, 'raw_data_package: illegal change of state'); END;

CREATE TRIGGER raw_data_package_proof BEFORE UPDATE OF state ON raw_data_package
WHEN NEW.state = 'archived' AND OLD.state <> 'archived' AND (
    NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id)
    OR EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = NEW.id AND NOT (
        EXISTS (SELECT 1 FROM physical_copy c JOIN data_location l ON l.id = c.location_id
            WHERE c.package_id = NEW.id AND c.location_id = q.location_id AND c.status = 'present'
                AND c.verification = 'verified' AND l.location_type = 'long_term_archive')
        AND EXISTS (SELECT 1 FROM verification_record v JOIN package_digest d
                ON d.package_id = v.package_id AND d.algorithm = v.algorithm
            WHERE v.package_id = NEW.id AND v.location_id = q.location_id
                AND v.found_digest = d.digest AND v.expected_digest = d.digest
                AND v.found_size_bytes = NEW.size_bytes AND v.expected_size_bytes = NEW.size_bytes))))
BEGIN SELECT RAISE(ABORT, 'raw_data_package: archived needs a verified copy in every archive that is required'); END;

CREATE TRIGGER physical_copy_proof_insert BEFORE INSERT ON physical_copy
WHEN (NEW.verification = 'verified' AND NOT EXISTS (
        SELECT 1 FROM verification_record v JOIN package_digest d
            ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        WHERE v.package_id = NEW.package_id AND v.location_id = NEW.location_id
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = NEW.size_bytes AND v.expected_size_bytes = NEW.size_bytes))
    OR (NEW.verification = 'registered' AND NEW.location_id IS NOT
        (SELECT origin_location_id FROM raw_data_package WHERE id = NEW.package_id))
    OR NEW.size_bytes IS NOT (SELECT size_bytes FROM raw_data_package WHERE id = NEW.package_id)
BEGIN SELECT RAISE(ABORT, 'physical_copy: verified needs an equal verification_record, registered is the origin alone'); END;

CREATE TRIGGER physical_copy_proof_update BEFORE UPDATE ON physical_copy
WHEN (NEW.verification = 'verified' AND OLD.verification <> 'verified' AND NOT EXISTS (
        SELECT 1 FROM verification_record v JOIN package_digest d
            ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        WHERE v.package_id = NEW.package_id AND v.location_id = NEW.location_id
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = NEW.size_bytes AND v.expected_size_bytes = NEW.size_bytes))
    OR (NEW.verification = 'registered' AND OLD.verification <> 'registered') OR NEW.size_bytes <> OLD.size_bytes
BEGIN SELECT RAISE(ABORT, 'physical_copy: verified needs an equal verification_record, registered is the origin alone'); END;

-- ---- fenced evidence: what an overtaken owner says is refused

CREATE TRIGGER verification_record_fence BEFORE INSERT ON verification_record
WHEN (NEW.data_transfer_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM data_transfer t JOIN transfer_request r ON r.data_transfer_package_id = t.data_transfer_package_id
        WHERE t.id = NEW.data_transfer_id AND t.fence = NEW.fence AND t.status NOT IN ('completed', 'failed')
            AND NEW.location_id IN (t.origin_location_id, t.destination_location_id) AND r.package_id = NEW.package_id))
    OR (NEW.long_term_archive_transfer_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM long_term_archive_transfer t
        WHERE t.id = NEW.long_term_archive_transfer_id AND t.fence = NEW.fence
            AND t.status NOT IN ('completed', 'failed') AND t.package_id = NEW.package_id
            AND NEW.location_id IN (t.origin_location_id, t.destination_location_id)))
BEGIN SELECT RAISE(ABORT, 'verification_record: the fence was overtaken, or it is not of this work'); END;

CREATE TRIGGER attempt_fence BEFORE INSERT ON attempt
WHEN NEW.fence IS NOT coalesce((SELECT fence FROM data_transfer WHERE id = NEW.data_transfer_id),
    (SELECT fence FROM long_term_archive_transfer WHERE id = NEW.long_term_archive_transfer_id))
BEGIN SELECT RAISE(ABORT, 'attempt: the fence was overtaken'); END;

-- ---- what follows from a change

CREATE TRIGGER data_transfer_next_hop AFTER UPDATE OF status ON data_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed'
BEGIN
    UPDATE data_transfer SET ready = 1,
        next_attempt_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER),
        updated_at = CAST(unixepoch('subsec') * 1000000 AS INTEGER)
    WHERE waits_for = NEW.id AND NOT ready;
END;

-- A person who retries it gives its workers a new chance.
CREATE TRIGGER data_transfer_retried AFTER UPDATE OF status ON data_transfer
WHEN OLD.status = 'failed' AND NEW.status = 'pending' AND NEW.losses > 0
BEGIN UPDATE data_transfer SET losses = 0 WHERE id = NEW.id; END;

-- A person who retries it gives its workers a new chance.
CREATE TRIGGER long_term_archive_transfer_retried AFTER UPDATE OF status ON long_term_archive_transfer
WHEN OLD.status = 'failed' AND NEW.status = 'pending' AND NEW.losses > 0
BEGIN UPDATE long_term_archive_transfer SET losses = 0 WHERE id = NEW.id; END;

CREATE TRIGGER data_transfer_born AFTER INSERT ON data_transfer
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, fence, reason)
    VALUES ('data_transfer', NEW.id, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
END;
CREATE TRIGGER data_transfer_moved AFTER UPDATE ON data_transfer
WHEN NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.cancel_requested <> OLD.cancel_requested
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, fence, reason)
    VALUES ('data_transfer', NEW.id, OLD.status, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
END;
CREATE TRIGGER long_term_archive_transfer_born AFTER INSERT ON long_term_archive_transfer
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, fence, reason)
    VALUES ('long_term_archive_transfer', NEW.id, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
END;
CREATE TRIGGER long_term_archive_transfer_moved AFTER UPDATE ON long_term_archive_transfer
WHEN NEW.status <> OLD.status OR NEW.fence <> OLD.fence OR NEW.cancel_requested <> OLD.cancel_requested
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, fence, reason)
    VALUES ('long_term_archive_transfer', NEW.id, OLD.status, NEW.status, NEW.changed_by, NEW.fence, NEW.change_reason);
END;
CREATE TRIGGER raw_data_package_born AFTER INSERT ON raw_data_package
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, reason)
    VALUES ('raw_data_package', NEW.id, NEW.state, NEW.changed_by, NEW.change_reason);
END;
CREATE TRIGGER raw_data_package_moved AFTER UPDATE OF state ON raw_data_package WHEN NEW.state <> OLD.state
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason)
    VALUES ('raw_data_package', NEW.id, OLD.state, NEW.state, NEW.changed_by, NEW.change_reason);
END;
CREATE TRIGGER physical_copy_born AFTER INSERT ON physical_copy
BEGIN
    INSERT INTO event (entity, entity_id, to_state, actor, reason) VALUES
        ('physical_copy', NEW.id, NEW.status || ' ' || NEW.verification, NEW.changed_by, NEW.change_reason);
END;
CREATE TRIGGER physical_copy_moved AFTER UPDATE ON physical_copy
WHEN NEW.status <> OLD.status OR NEW.verification <> OLD.verification
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
        ('physical_copy', NEW.id, OLD.status || ' ' || OLD.verification, NEW.status || ' ' || NEW.verification,
        NEW.changed_by, NEW.change_reason);
END;
CREATE TRIGGER data_location_moved AFTER UPDATE OF active, paused ON data_location
WHEN NEW.active <> OLD.active OR NEW.paused <> OLD.paused
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
        ('data_location', NEW.id,
        iif(OLD.active, iif(OLD.paused, 'paused', 'active'), 'inactive'),
        iif(NEW.active, iif(NEW.paused, 'paused', 'active'), 'inactive'), NEW.changed_by, NEW.change_reason);
END;
CREATE TRIGGER data_transfer_route_moved AFTER UPDATE OF active, paused, breaker_state ON data_transfer_route
WHEN NEW.active <> OLD.active OR NEW.paused <> OLD.paused OR NEW.breaker_state <> OLD.breaker_state
BEGIN
    INSERT INTO event (entity, entity_id, from_state, to_state, actor, reason) VALUES
        ('data_transfer_route', NEW.id,
        iif(OLD.active, iif(OLD.paused, 'paused', 'active'), 'inactive') || ' ' || OLD.breaker_state,
        iif(NEW.active, iif(NEW.paused, 'paused', 'active'), 'inactive') || ' ' || NEW.breaker_state,
        NEW.changed_by, NEW.change_reason);
END;
