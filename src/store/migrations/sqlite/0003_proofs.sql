-- A transfer is completed by what this attempt found, not by what an earlier one did: the record bears its work and its
-- fence. What lies there may have changed since.

DROP TRIGGER data_transfer_proof;
CREATE TRIGGER data_transfer_proof BEFORE UPDATE OF status ON data_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND EXISTS (
    SELECT 1 FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id
    WHERE r.data_transfer_package_id = NEW.data_transfer_package_id AND NOT (
        EXISTS (SELECT 1 FROM verification_record v JOIN package_digest d
                ON d.package_id = v.package_id AND d.algorithm = v.algorithm
            WHERE v.package_id = p.id AND v.location_id = NEW.destination_location_id
                AND v.data_transfer_id = NEW.id AND v.fence = NEW.fence
                AND v.found_digest = d.digest AND v.expected_digest = d.digest
                AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
        AND EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = p.id
            AND c.location_id = NEW.destination_location_id AND c.status = 'present' AND c.verification = 'verified')))
BEGIN SELECT RAISE(ABORT, 'data_transfer: completed needs an equal verification_record of this attempt and a verified copy of every package'); END;

DROP TRIGGER long_term_archive_transfer_proof;
CREATE TRIGGER long_term_archive_transfer_proof BEFORE UPDATE OF status ON long_term_archive_transfer
WHEN NEW.status = 'completed' AND OLD.status <> 'completed' AND NOT (
    EXISTS (SELECT 1 FROM verification_record v JOIN package_digest d
            ON d.package_id = v.package_id AND d.algorithm = v.algorithm
        JOIN raw_data_package p ON p.id = v.package_id
        WHERE v.package_id = NEW.package_id AND v.location_id = NEW.destination_location_id
            AND v.long_term_archive_transfer_id = NEW.id AND v.fence = NEW.fence
            AND v.found_digest = d.digest AND v.expected_digest = d.digest
            AND v.found_size_bytes = p.size_bytes AND v.expected_size_bytes = p.size_bytes)
    AND EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = NEW.package_id
        AND c.location_id = NEW.destination_location_id AND c.status = 'present' AND c.verification = 'verified'))
BEGIN SELECT RAISE(ABORT,
    'long_term_archive_transfer: completed needs an equal verification_record of this attempt and a verified copy'); END;
