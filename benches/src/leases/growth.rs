//! How costs grow with the number of agents, drawn: both axes are logarithmic, so that what grows in proportion is
//! a straight line.

use std::fmt::Write as _;

use super::steady::Cost;

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 220.0;
/// Around the lines of a panel: room for numbers and the title.
const MARGIN: f64 = 48.0;

const OURS: &str = "#1f6feb";
const ETCD: &str = "#d29922";

/// What both servers cost with some number of agents.
#[derive(Debug)]
struct Point {
    agents: f64,
    ours: Cost,
    etcd: Option<Cost>,
}

/// One point for each round.
#[derive(Debug, Default)]
pub struct Growth(Vec<Point>);

impl Growth {
    pub(super) fn push(&mut self, agents: f64, ours: Cost, etcd: Option<Cost>) {
        self.0.push(Point { agents, ours, etcd });
    }

    /// The drawing, as SVG; none of fewer than two points.
    pub fn svg(&self) -> Option<String> {
        let (first, last) = (self.0.first()?.agents, self.0.last()?.agents);
        if first >= last {
            return None;
        }
        let panels = [
            ("processor, cores", Cost::cores as fn(&Cost) -> f64),
            ("memory, MB", Cost::megabytes),
            ("processor per beat, us", Cost::beat_micros),
        ];
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{HEIGHT}" font-family="sans-serif" font-size="11">"#,
            WIDTH * 3.0
        );
        svg.push('\n');
        for ((title, value), left) in panels.into_iter().zip([0.0, WIDTH, WIDTH * 2.0]) {
            let across = Axis::new(first, last, left + MARGIN, left + WIDTH - MARGIN / 2.0);
            self.panel(&mut svg, title, value, across);
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }

    fn panel(&self, svg: &mut String, title: &str, value: fn(&Cost) -> f64, across: Axis) {
        let ours = self
            .0
            .iter()
            .map(|point| (point.agents, value(&point.ours)));
        let etcd = self.0.iter();
        let etcd = etcd.filter_map(|point| Some((point.agents, value(point.etcd.as_ref()?))));
        let lines = [
            ("arbiter", OURS, ours.collect::<Vec<_>>()),
            ("etcd", ETCD, etcd.collect()),
        ];
        let values = || {
            lines
                .iter()
                .flat_map(|(.., points)| points)
                .map(|(_, y)| *y)
        };
        let (low, high) = (
            values().fold(f64::INFINITY, f64::min) / 1.5,
            values().fold(0.0, f64::max) * 1.5,
        );
        let up = Axis::new(low, high, HEIGHT - MARGIN, MARGIN);
        let mut text = |x: f64, y: f64, anchor: &str, colour: &str, text: &str| {
            let _ = writeln!(
                svg,
                r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{text}</text>"#
            );
        };
        text(across.from, MARGIN / 2.0, "start", "#000", title);
        for point in &self.0 {
            let x = across.at(point.agents);
            text(
                x,
                HEIGHT - MARGIN / 2.0,
                "middle",
                "#000",
                &point.agents.to_string(),
            );
        }
        for (number, (name, colour, points)) in lines.iter().enumerate() {
            let row = [MARGIN / 2.0 + 14.0, MARGIN / 2.0 + 28.0][number];
            if points.is_empty() {
                continue;
            }
            text(across.from, row, "start", colour, name);
            for &(agents, y) in points {
                let told = match y {
                    ..0.1 => format!("{y:.4}"),
                    ..10.0 => format!("{y:.2}"),
                    _ => format!("{y:.0}"),
                };
                text(across.at(agents), up.at(y) - 6.0, "middle", colour, &told);
            }
        }
        for (_, colour, points) in lines.iter().filter(|(.., points)| !points.is_empty()) {
            let points = points
                .iter()
                .map(|&(agents, y)| (across.at(agents), up.at(y)));
            let points: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                svg,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                points.join(" ")
            );
        }
    }
}

/// Numbers to places on a logarithmic scale.
#[derive(Debug, Clone, Copy)]
struct Axis {
    low: f64,
    span: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(low: f64, high: f64, from: f64, to: f64) -> Self {
        let low = low.max(f64::MIN_POSITIVE).ln();
        let span = (high.max(f64::MIN_POSITIVE).ln() - low).max(f64::EPSILON);
        Self {
            low,
            span,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE).ln() - self.low) / self.span;
        self.from + part * (self.to - self.from)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cost(micros: u64) -> Cost {
        Cost {
            cpu: Duration::from_micros(micros),
            span: Duration::from_secs(1),
            beats: 10,
            resident: micros << 10,
            up_bytes: 0.0,
            down_bytes: 0.0,
        }
    }

    #[test]
    fn what_grows_in_proportion_is_a_straight_line() {
        let mut growth = Growth::default();
        assert_eq!(growth.svg(), None);
        for (agents, micros) in [(100.0, 1_000), (1_000.0, 10_000), (10_000.0, 100_000)] {
            growth.push(agents, cost(micros), None);
        }

        let svg = growth.svg().unwrap();
        let line = svg.split("<polyline points=\"").nth(1).unwrap();
        let points = line.split('"').next().unwrap().split(' ');
        let points: Vec<Vec<f64>> = points
            .map(|point| point.split(',').map(|part| part.parse().unwrap()).collect())
            .collect();
        assert_eq!(points.len(), 3);
        for axis in 0..2 {
            let steps = [
                points[1][axis] - points[0][axis],
                points[2][axis] - points[1][axis],
            ];
            assert!((steps[0] - steps[1]).abs() < 0.5, "{points:?}");
        }
        assert!(points[2][1] < points[0][1], "more is higher");
    }
}
