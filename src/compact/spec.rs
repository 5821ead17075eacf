//! What a plan fixes of an output, read strictly: a word that this version does not know stops the build. A guess would write files of another
//! kind under the plan's names.

use super::memory::EARLIER_ROW_GROUP_BYTES;
use super::name::Layout;
use super::parquet::{Codecs, Encodings, OutputSpec, WriterSettings};
use super::{SchemaColumn, memory};
use crate::format::manifest::{Plan, PlanWriter};
use crate::types::LogId;

fn codec(w: &PlanWriter) -> Result<Codecs, String> {
    let level = |highest: i32| match w.level {
        x if (1..=highest).contains(&x) => Ok(x),
        x => Err(format!("{} level {x} (expected 1 to {highest})", w.compression)),
    };
    match w.compression.as_str() {
        "none" => Ok(Codecs::None),
        "snappy" => Ok(Codecs::Snappy),
        "lz4" => Ok(Codecs::Lz4),
        "zstd" => Ok(Codecs::Zstd(level(22)?)),
        "gzip" => Ok(Codecs::Gzip(level(9)?.unsigned_abs())),
        other => Err(format!("compression \"{other}\" (expected zstd, none, snappy, lz4 or gzip)")),
    }
}

/// Plans of format 1.0 do not say it.
fn encodings(w: &PlanWriter) -> Result<Encodings, String> {
    match w.encoding.as_deref() {
        Some("compatible") => Ok(Encodings::Compatible),
        Some("compact") | None => Ok(Encodings::Compact),
        Some(other) => Err(format!("encoding \"{other}\" (expected compatible or compact)")),
    }
}

fn layout(w: &PlanWriter) -> Result<Layout, String> {
    Layout::parse(&w.layout).ok_or_else(|| format!("layout \"{}\" (expected hive or arc)", w.layout))
}

/// What `writer` says that this version cannot do; None when it can do all of it.
pub fn unknown_setting(writer: &PlanWriter) -> Option<String> {
    let why = codec(writer).err().or_else(|| layout(writer).err()).or_else(|| encodings(writer).err())?;
    Some(format!("{why}, written by arc {}: use that version", writer.version))
}

/// The specification of output `n` of a plan.
///
/// # Errors
/// What the plan says that this version does not know, or what of it is missing.
pub(super) fn output_spec(plan: &Plan, n: u32, log: LogId) -> Result<OutputSpec, String> {
    let in_plan = |why: String| format!("plan {}, output {n}: {why}", plan.plan);
    let o = plan.outputs.get(n as usize).ok_or_else(|| in_plan(format!("not one of its {} outputs", plan.outputs.len())))?;
    let s = plan.schemas.get(o.schema as usize).ok_or_else(|| in_plan(format!("schema {} is not in the plan", o.schema)))?;
    let column = |x: &crate::format::manifest::PlanColumn| match x.column_type() {
        Some(ty) => Ok(SchemaColumn { name: x.name.clone(), ty, tag: x.tag }),
        None => Err(in_plan(format!("column '{}' has a type that this version does not know", x.name))),
    };
    let columns = s.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let w = &plan.writer;
    if let Some(why) = unknown_setting(w) {
        return Err(in_plan(why));
    }
    let metadata = [
        ("arc.log_uuid", log.to_string()),
        ("arc.plan", plan.plan.to_string()),
        ("arc.first_sequence", plan.first_sequence.to_string()),
        ("arc.last_sequence", plan.last_sequence.to_string()),
    ];
    let bytes = w.row_group_bytes.unwrap_or(EARLIER_ROW_GROUP_BYTES).min(memory::MAX_ROW_GROUP_BYTES);
    Ok(OutputSpec {
        database: s.database.clone(),
        table: s.table.clone(),
        hour: o.hour,
        layout: layout(w).map_err(in_plan)?,
        columns,
        settings: WriterSettings {
            compression: codec(w).map_err(in_plan)?,
            encodings: encodings(w).map_err(in_plan)?,
            row_group_rows: usize::try_from(w.row_group_rows).unwrap_or(usize::MAX),
            row_group_bytes: bytes as usize,
        },
        metadata: metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(compression: &str, level: i32, layout: &str) -> PlanWriter {
        PlanWriter {
            version: "9.9".into(),
            compression: compression.into(),
            level,
            row_group_rows: 1,
            layout: layout.into(),
            encoding: None,
            row_group_bytes: None,
        }
    }

    #[test]
    fn words_that_this_version_does_not_know_are_refused_by_name() {
        for (w, named) in [
            (writer("brotli", 1, "hive"), "\"brotli\""),
            (writer("", 1, "hive"), "compression \"\""),
            (writer("zstd", 0, "hive"), "level 0"),
            (writer("zstd", 23, "arc"), "level 23"),
            (writer("gzip", 10, "arc"), "level 10"),
            (writer("none", 0, "iceberg"), "\"iceberg\""),
        ] {
            let why = unknown_setting(&w).unwrap();
            assert!(why.contains(named) && why.contains("9.9"), "{why}");
        }
        for w in [writer("none", 0, "hive"), writer("lz4", 0, "arc"), writer("snappy", 99, "arc"), writer("zstd", 22, "hive")] {
            assert_eq!(unknown_setting(&w), None);
        }
        let why = unknown_setting(&PlanWriter { encoding: Some("dense".into()), ..writer("none", 0, "hive") }).unwrap();
        assert!(why.contains("encoding \"dense\""), "{why}");
    }
}
