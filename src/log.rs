//! The per-server log: a callback with a level, silent by default, no global state.

use std::fmt;

/// syslog(3) levels, the ones that the library uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// Something is lost: a callback panicked, a queue was orphaned.
    Error = 3,
    /// The peer or the guest misbehaves: a refused message, a broken ring.
    Warning = 4,
    /// Connections come and go.
    Info = 6,
    /// Each message.
    Debug = 7,
}

/// Receives log lines, without a newline. Called from any thread; must not call back into the library.
pub type LogFn = Box<dyn Fn(Level, &str) + Send + Sync>;

pub(crate) struct Logger {
    max: Option<Level>,
    sink: Option<LogFn>,
}

impl Logger {
    pub(crate) fn new(max: Option<Level>, sink: Option<LogFn>) -> Self {
        Logger { max, sink }
    }

    pub(crate) fn log(&self, level: Level, message: fmt::Arguments<'_>) {
        if self.max.is_none_or(|max| level > max) {
            return;
        }
        if let Some(sink) = &self.sink {
            sink(level, &message.to_string());
        }
    }

    pub(crate) fn error(&self, message: fmt::Arguments<'_>) {
        self.log(Level::Error, message);
    }

    pub(crate) fn warning(&self, message: fmt::Arguments<'_>) {
        self.log(Level::Warning, message);
    }

    pub(crate) fn info(&self, message: fmt::Arguments<'_>) {
        self.log(Level::Info, message);
    }

    pub(crate) fn debug(&self, message: fmt::Arguments<'_>) {
        self.log(Level::Debug, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn lines_above_the_level_are_not_delivered() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let logger = Logger::new(
            Some(Level::Warning),
            Some(Box::new(move |level, line| {
                sink.lock().unwrap().push((level, line.to_owned()));
            })),
        );
        logger.info(format_args!("not this"));
        logger.warning(format_args!("ring {}", 3));
        assert_eq!(
            *lines.lock().unwrap(),
            [(Level::Warning, "ring 3".to_owned())]
        );
        Logger::new(None, None).error(format_args!("silent"));
    }
}
