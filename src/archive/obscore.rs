//! Metadata of a package under the names of IVOA ObsCore 1.1, where it has them.

use std::collections::BTreeMap;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// What is known of an observation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// By ObsCore's names, in its units: degrees, days (MJD), metres, kilobytes.
    pub obscore: BTreeMap<String, Value>,
    /// What ObsCore has no name for, or not with such a value, under its own name.
    pub other: BTreeMap<String, Value>,
    /// All of it to the letter, as it was registered: one JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<String>,
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Integer,
    Real,
}

/// How a value becomes ObsCore's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It is the same.
    None,
    /// A moment in RFC 3339 becomes a Modified Julian Date.
    Mjd,
    /// A frequency in Hz becomes a wavelength in metres.
    Wavelength,
}

/// ObsCore's columns that describe an observation (REC-ObsCore-v1.1, table 1 and appendix B).
const COLUMNS: &[(&str, Form)] = &[
    ("dataproduct_type", Form::Text),
    ("dataproduct_subtype", Form::Text),
    ("calib_level", Form::Integer),
    ("obs_collection", Form::Text),
    ("obs_id", Form::Text),
    ("obs_title", Form::Text),
    ("obs_publisher_did", Form::Text),
    ("obs_creator_did", Form::Text),
    ("obs_creator_name", Form::Text),
    ("access_url", Form::Text),
    ("access_format", Form::Text),
    ("access_estsize", Form::Integer),
    ("target_name", Form::Text),
    ("target_class", Form::Text),
    ("s_ra", Form::Real),
    ("s_dec", Form::Real),
    ("s_fov", Form::Real),
    ("s_region", Form::Text),
    ("s_resolution", Form::Real),
    ("t_min", Form::Real),
    ("t_max", Form::Real),
    ("t_exptime", Form::Real),
    ("t_resolution", Form::Real),
    ("em_min", Form::Real),
    ("em_max", Form::Real),
    ("em_res_power", Form::Real),
    ("o_ucd", Form::Text),
    ("pol_states", Form::Text),
    ("facility_name", Form::Text),
    ("instrument_name", Form::Text),
    ("proposal_id", Form::Text),
];

/// Names of the operations database that mean a column of ObsCore. The lowest frequency is the longest wave.
const OTHER_NAMES: &[(&str, &str, Change)] = &[
    ("executed_obs_unit_id", "obs_id", Change::None),
    ("observing_program", "obs_collection", Change::None),
    ("source", "target_name", Change::None),
    ("source_name", "target_name", Change::None),
    ("ra_deg", "s_ra", Change::None),
    ("dec_deg", "s_dec", Change::None),
    ("start_time", "t_min", Change::Mjd),
    ("end_time", "t_max", Change::Mjd),
    ("exposure_s", "t_exptime", Change::None),
    ("frequency_max_hz", "em_min", Change::Wavelength),
    ("frequency_min_hz", "em_max", Change::Wavelength),
    ("instrument", "instrument_name", Change::None),
    ("telescope", "facility_name", Change::None),
    ("observatory", "facility_name", Change::None),
];

impl Metadata {
    /// Gives ObsCore's names to what has one. A column's own name comes before another name for it, and the first of those
    /// before the next; whatever finds its column taken keeps its own name. The size is the package's.
    pub fn of(known: &BTreeMap<String, Value>, size_bytes: u64) -> Self {
        let mut metadata = Self::default();
        for (key, value) in known {
            if let Some((column, form)) = COLUMNS.iter().find(|(column, _)| column == key)
                && let Some(value) = form.of(value, Change::None)
            {
                metadata.obscore.insert((*column).to_owned(), value);
            } else {
                metadata.other.insert(key.clone(), value.clone());
            }
        }
        for (name, column, change) in OTHER_NAMES {
            let form = COLUMNS.iter().find(|(of, _)| of == column).map_or(Form::Text, |(_, form)| *form);
            if !metadata.obscore.contains_key(*column)
                && let Some(value) = metadata.other.get(*name).and_then(|value| form.of(value, *change))
            {
                metadata.other.remove(*name);
                metadata.obscore.insert((*column).to_owned(), value);
            }
        }
        // In kilobytes, as the standard has it.
        metadata.obscore.entry("access_estsize".to_owned()).or_insert_with(|| size_bytes.div_ceil(1000).into());
        metadata
    }
}

impl Form {
    fn of(self, value: &Value, change: Change) -> Option<Value> {
        let value = match change {
            Change::None => value.clone(),
            Change::Mjd => real(mjd(value.as_str()?)?)?,
            Change::Wavelength => real(LIGHT_M_PER_S / value.as_f64().filter(|hz| *hz > 0.0)?)?,
        };
        match (self, value) {
            (Self::Text, Value::Number(number)) => Some(Value::String(number.to_string())),
            (Self::Text, text @ Value::String(_)) => Some(text),
            (Self::Integer, number) if number.is_i64() || number.is_u64() => Some(number),
            (Self::Real, number @ Value::Number(_)) => Some(number),
            _ => None,
        }
    }
}

fn real(number: f64) -> Option<Value> {
    Number::from_f64(number).map(Value::Number)
}

/// Days since 1858-11-17. As UTC: leap seconds are below what ObsCore cares for.
fn mjd(text: &str) -> Option<f64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    let (days, rest) = (time.timestamp().div_euclid(86_400), time.timestamp().rem_euclid(86_400));
    let seconds = f64::from(u32::try_from(rest).ok()?) + f64::from(time.timestamp_subsec_nanos()) / 1e9;
    Some(f64::from(i32::try_from(days).ok()?) + EPOCH_MJD + seconds / 86_400.0)
}

/// 1970-01-01.
const EPOCH_MJD: f64 = 40_587.0;
const LIGHT_M_PER_S: f64 = 299_792_458.0;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapped(known: Value) -> Metadata {
        Metadata::of(&serde_json::from_value(known).unwrap(), 1001)
    }

    #[test]
    fn names_of_the_operations_database_become_those_of_obscore() {
        let metadata = mapped(json!({
            "executed_obs_unit_id": 77, "source_name": "Orion KL", "ra_deg": 83.8, "instrument": "CHAI",
            "start_time": "2026-11-22T12:00:00Z", "frequency_min_hz": 299_792_458_000u64, "chop_mode": "dual",
        }));
        assert_eq!(
            serde_json::to_value(&metadata).unwrap(),
            json!({
                "obscore": {
                    "obs_id": "77", "target_name": "Orion KL", "s_ra": 83.8, "instrument_name": "CHAI",
                    "t_min": 61_366.5, "em_max": 0.001, "access_estsize": 2,
                },
                "other": { "chop_mode": "dual" },
            })
        );
    }

    #[test]
    fn a_column_takes_one_value_and_the_others_keep_their_names() {
        let metadata =
            mapped(json!({ "target_name": "M42", "source": "Orion", "telescope": "FYST", "observatory": "CCAT" }));
        assert_eq!(metadata.obscore["target_name"], "M42");
        assert_eq!(metadata.obscore["facility_name"], "FYST");
        assert_eq!(
            metadata.other,
            serde_json::from_value(json!({ "source": "Orion", "observatory": "CCAT" })).unwrap()
        );
    }

    #[test]
    fn what_has_not_the_form_of_its_column_keeps_its_own_name() {
        let metadata =
            mapped(json!({ "s_ra": "05:35", "start_time": "yesterday", "calib_level": 1.5, "frequency_min_hz": 0 }));
        assert_eq!(metadata.obscore.keys().collect::<Vec<_>>(), ["access_estsize"]);
        assert_eq!(metadata.other.len(), 4);
    }
}
