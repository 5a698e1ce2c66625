//! The per-server log: a callback with a level, silent by default, no global state.
//!
//! A peer or a guest can make the library write lines as fast as it likes, so of those that they cause only some are
//! written in a while; the first one after that says how many were left out.

use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

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

/// So many lines of one level get through in such a time.
const LINES: u32 = 20;
const WHILE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Limit {
    began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Limit {
    /// Whether a line may be written, and how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self
            .began
            .is_none_or(|began| now.saturating_duration_since(began) >= WHILE)
        {
            self.began = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

pub(crate) struct Logger {
    max: Option<Level>,
    sink: Option<LogFn>,
    warnings: Mutex<Limit>,
    infos: Mutex<Limit>,
}

impl Logger {
    pub(crate) fn new(max: Option<Level>, sink: Option<LogFn>) -> Self {
        Logger {
            max,
            sink,
            warnings: Mutex::new(Limit::default()),
            infos: Mutex::new(Limit::default()),
        }
    }

    pub(crate) fn log(&self, level: Level, message: fmt::Arguments<'_>) {
        if self.max.is_none_or(|max| level > max) {
            return;
        }
        let Some(sink) = &self.sink else {
            return;
        };
        match self.admit(level) {
            None => {}
            Some(0) => sink(level, &message.to_string()),
            Some(left_out) => sink(
                level,
                &format!("{message} ({left_out} lines before this left out)"),
            ),
        }
    }

    /// Errors are rare, and who wants to see each message does.
    fn admit(&self, level: Level) -> Option<u64> {
        let limit = match level {
            Level::Error | Level::Debug => return Some(0),
            Level::Warning => &self.warnings,
            Level::Info => &self.infos,
        };
        limit.lock().admit(Instant::now())
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
    fn a_flood_is_cut_and_counted() {
        let mut limit = Limit::default();
        let now = Instant::now();
        let through = (0..1000).filter(|_| limit.admit(now) == Some(0)).count();
        assert_eq!(through, LINES as usize);
        assert_eq!(limit.admit(now + WHILE - Duration::from_millis(1)), None);
        let left_out = 1001 - u64::from(LINES);
        assert_eq!(limit.admit(now + WHILE), Some(left_out));
        assert_eq!(limit.admit(now + WHILE), Some(0));
    }

    #[test]
    fn what_is_worse_is_not_lost_in_a_flood() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let logger = Logger::new(
            Some(Level::Info),
            Some(Box::new(move |level, _| sink.lock().unwrap().push(level))),
        );
        for _ in 0..1000 {
            logger.info(format_args!("again"));
        }
        logger.warning(format_args!("this"));
        logger.error(format_args!("and this"));
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), LINES as usize + 2);
        assert_eq!(lines[LINES as usize..], [Level::Warning, Level::Error]);
    }

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
