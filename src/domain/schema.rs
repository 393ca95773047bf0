//! JSON Schemas of event types, and what they may cost.
//!
//! A schema comes from a tenant and is held against every payload of its type, so it must not be
//! able to cost without end: it is small, it is a tree (references could make it exponential), and
//! its patterns are matched in linear time. Nothing is fetched.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// Most bytes in a JSON Schema.
pub const MAX_BYTES: usize = 16 * 1024;
/// Most violations that one payload is told.
pub const MAX_VIOLATIONS: usize = 20;
/// Keywords by which a schema refers to another one, or to itself.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Reads a schema, ready to check payloads.
///
/// # Errors
/// A sentence for the client.
pub fn compile(text: &str) -> Result<Validator, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("must have at most {MAX_BYTES} bytes, has {}", text.len()));
    }
    let schema: Value =
        serde_json::from_str(text).map_err(|error| format!("must be JSON: {error}"))?;
    if refers(&schema) {
        return Err("must not use $ref, $dynamicRef or $recursiveRef: write the schema out".into());
    }
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex())
        .build(&schema)
        .map_err(|error| format!("must be a JSON Schema: {error}"))
}

/// Whether a reference stands anywhere in the document.
fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            members.iter().any(|(name, value)| REFERENCES.contains(&name.as_str()) || refers(value))
        }
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_that_could_cost_without_end_is_refused() {
        let doubling = r##"{"$defs":{"a":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/a"}},
            {"type":"array","minItems":0,"items":{"$ref":"#/$defs/a"}}]}},"$ref":"#/$defs/a"}"##;
        let large = format!(r#"{{"description":"{}"}}"#, "x".repeat(MAX_BYTES));
        let backtracking = r#"{"pattern":"(a+)+\\1$"}"#;
        for schema in [doubling, large.as_str(), backtracking, "{", r#"{"type":"nonsense"}"#] {
            assert!(compile(schema).is_err(), "{schema:.60}");
        }
    }

    #[test]
    fn a_plain_schema_checks() {
        let schema = compile(r#"{"type":"object","required":["id"]}"#).expect("a schema");
        assert!(schema.is_valid(&serde_json::json!({"id": 7})));
        assert!(!schema.is_valid(&serde_json::json!({})));
    }
}
