//! Log lines: their filter, their form, and the way to stderr.

use std::fmt;
use std::io::IsTerminal as _;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Global;
use crate::config::{self, Config, LogLevel};
use crate::log_writer;

/// Changes the filter of the log lines.
pub struct Levels(Box<dyn Fn(EnvFilter) -> bool + Send + Sync>);

impl Levels {
    /// Puts another filter in force; whether it is.
    pub fn set(&self, filter: EnvFilter) -> bool {
        (self.0)(filter)
    }
}

impl fmt::Debug for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Levels")
    }
}

/// `ARC_LOG`, else `log.level` for what this server says. Libraries speak of their own inside: of them only warnings are of use.
pub(super) fn filter(config: &Config) -> EnvFilter {
    let of_environment = config.log_filter.as_deref().and_then(|text| EnvFilter::try_new(text).ok());
    of_environment.unwrap_or_else(|| EnvFilter::new(directives(config.log.level)))
}

fn directives(level: LogLevel) -> String {
    let others = if level == LogLevel::Error { LogLevel::Error } else { LogLevel::Warn };
    format!("{others},arc_ingest={level}")
}

/// Log lines, and what a panic says, go to stderr from here on, by [`log_writer`].
pub fn init_logging(config: &Config, global: &Global) -> Levels {
    let text = match config.log.format {
        config::LogFormat::Auto => std::io::stderr().is_terminal(),
        config::LogFormat::Text => true,
        config::LogFormat::Json => false,
    };
    let writer = log_writer::stderr();
    if let Some(text) = &config.log_filter
        && let Err(e) = EnvFilter::try_new(text)
    {
        global.warn(format_args!("ARC_LOG: expected a filter such as info or arc_ingest=debug, found {text:?} ({e}); log.level is used"));
    }
    // The default hook writes to stderr itself, and would hang where nobody reads.
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let trace = std::backtrace::Backtrace::capture();
        let trace = if trace.status() == std::backtrace::BacktraceStatus::Captured { format!("\n{trace}") } else { String::new() };
        tracing::error!("thread {:?} {info}{trace}", thread.name().unwrap_or("unnamed"));
    }));
    let b = tracing_subscriber::fmt().with_env_filter(filter(config)).log_internal_errors(false).with_writer(|| writer.clone());
    // Fails only when a subscriber is set already, in tests.
    if text {
        let b = b.with_ansi(global.color.on_stderr()).with_filter_reloading();
        let handle = b.reload_handle();
        let _ = b.try_init();
        Levels(Box::new(move |f| handle.reload(f).is_ok()))
    } else {
        let b = b.event_format(JsonLines).with_filter_reloading();
        let handle = b.reload_handle();
        let _ = b.try_init();
        Levels(Box::new(move |f| handle.reload(f).is_ok()))
    }
}

/// One JSON object a line, in which no key stands twice: `timestamp`, `level`, the fields of the event, `target`. A field that has the name of
/// another gets underscores.
#[derive(Debug)]
struct JsonLines;

#[derive(Default)]
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn put(&mut self, name: &str, value: Value) {
        let mut name = name.to_owned();
        while ["timestamp", "level", "target"].contains(&name.as_str()) || self.0.iter().any(|(n, _)| *n == name) {
            name.push('_');
        }
        self.0.push((name, value));
    }

    /// A line of the `log` crate carries where it came from in fields.
    fn take_origin(&mut self) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == "log.target")?;
        let target = self.0.remove(at).1.as_str().map(str::to_owned);
        self.0.retain(|(n, _)| !n.starts_with("log."));
        target
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}").into());
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let target = fields.take_origin().unwrap_or_else(|| meta.target().to_owned());
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        write!(out, "{{\"timestamp\":{},\"level\":\"{}\"", Value::from(time), meta.level())?;
        for (name, value) in fields.0 {
            write!(out, ",{}:{value}", Value::from(name))?;
        }
        writeln!(out, ",\"target\":{}}}", Value::from(target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_line_has_each_key_once() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt().event_format(JsonLines).with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target = 7, level = "x", timestamp = true, through = 1.5, big = u128::MAX, error = %"a \"b\"\n", "said");
            tracing::warn!(bad = f64::NAN, r#"no fields "quoted""#);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let all: Vec<&str> = text.lines().collect();
        assert_eq!(all.len(), 2, "{text}");
        for key in ["timestamp", "level", "target", "target_", "level_", "timestamp_", "through", "big", "error", "message"] {
            assert_eq!(all[0].matches(&format!("\"{key}\":")).count(), 1, "{key}: {text}");
        }
        let v: Value = serde_json::from_str(all[0]).unwrap();
        assert_eq!((&v["target"], &v["target_"], &v["level"]), (&"arc_ingest::cli::logging::tests".into(), &7.into(), &"INFO".into()));
        assert_eq!((&v["message"], &v["error"]), (&"said".into(), &"a \"b\"\n".into()));
        assert_eq!(serde_json::from_str::<Value>(all[1]).unwrap()["bad"], "NaN");
    }

    #[test]
    fn other_crates_stay_at_warnings() {
        assert_eq!(directives(LogLevel::Trace), "warn,arc_ingest=trace");
        assert_eq!(directives(LogLevel::Info), "warn,arc_ingest=info");
        assert_eq!(directives(LogLevel::Warn), "warn,arc_ingest=warn");
        assert_eq!(directives(LogLevel::Error), "error,arc_ingest=error");
    }
}
