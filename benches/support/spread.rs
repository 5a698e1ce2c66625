//! Least, median and most of what the rounds measured.

use std::fmt;

pub struct Spread {
    least: f64,
    pub median: f64,
    most: f64,
}

impl Spread {
    pub fn of<R>(rounds: &[R], value: impl Fn(&R) -> f64) -> Self {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Spread {
            least: values[0],
            median: (values[last / 2] + values[last.div_ceil(2)]) / 2.0,
            most: values[last],
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread {
            least,
            median,
            most,
        } = self;
        write!(f, "{median:.2} ({least:.2} .. {most:.2})")
    }
}
