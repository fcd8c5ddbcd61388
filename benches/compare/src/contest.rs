//! A contest: several sides do the same work in turn (A B A B …), so that a machine that slows down or speeds up
//! during the run does so for all of them.

use std::time::Instant;

/// How thoroughly to measure.
pub struct Plan {
    /// Measured rounds of every side, after one to warm up.
    pub rounds: usize,
    /// A smoke run: less work per round, figures not worth quoting.
    pub quick: bool,
}

impl Plan {
    /// `full` operations, or a twentieth of them in a quick run.
    pub fn size(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(20) } else { full }
    }
}

/// What the first side should reach in one metric: `bar`, and better still `stretch`.
pub enum Goal {
    /// At most this many times what `peer` takes.
    Ratio { peer: &'static str, bar: f64, stretch: Option<f64> },
    /// At most this much in the metric's unit.
    Absolute { bar: f64, stretch: Option<f64> },
}

/// Median and extremes of some samples.
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// # Panics
    /// Without samples.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Spread { median: (low + high) / 2.0, min: sorted[0], max: sorted[sorted.len() - 1] }
    }
}

struct Side<'a> {
    name: &'static str,
    measure: Box<dyn FnMut() -> Vec<f64> + 'a>,
    rounds: Vec<Vec<f64>>,
}

/// Sides and what is measured of each. The first side is the one under test, the others are its peers.
pub struct Contest<'a> {
    units: &'static [&'static str],
    sides: Vec<Side<'a>>,
    goals: Vec<(usize, Goal)>,
}

impl<'a> Contest<'a> {
    /// A contest of time per operation.
    pub fn timed() -> Self {
        Contest::of(&["ns/op"])
    }

    /// A contest in which every round of a side yields one figure per unit.
    pub fn of(units: &'static [&'static str]) -> Self {
        Contest { units, sides: Vec::new(), goals: Vec::new() }
    }

    /// A side whose `measure` yields the figures of one round.
    pub fn side(mut self, name: &'static str, measure: impl FnMut() -> Vec<f64> + 'a) -> Self {
        self.sides.push(Side { name, measure: Box::new(measure), rounds: Vec::new() });
        self
    }

    /// A side whose round is `work`, which does `ops` operations.
    pub fn work(self, name: &'static str, ops: usize, mut work: impl FnMut() + 'a) -> Self {
        self.side(name, move || {
            let start = Instant::now();
            work();
            vec![start.elapsed().as_nanos() as f64 / ops as f64]
        })
    }

    /// What the first side should reach in the metric of that index.
    pub fn goal(mut self, metric: usize, goal: Goal) -> Self {
        self.goals.push((metric, goal));
        self
    }

    /// Runs the rounds and prints the table and whether the goals are met.
    pub fn run(mut self, plan: &Plan) {
        for round in 0..=plan.rounds {
            for side in &mut self.sides {
                let figures = (side.measure)();
                if round > 0 {
                    side.rounds.push(figures);
                }
            }
        }
        for (metric, unit) in self.units.iter().enumerate() {
            self.print(metric, unit);
        }
    }

    fn print(&self, metric: usize, unit: &str) {
        println!("{unit:<34} {:>12} {:>12}    {:<12}  outray / this", "median", "min", "max");
        for (i, side) in self.sides.iter().enumerate() {
            let Spread { median, min, max } = Spread::of(side.rounds.iter().map(|round| round[metric]));
            print!("{:<34} {median:>12.1} {min:>12.1} .. {max:<12.1}", side.name);
            match i {
                0 => println!(),
                _ => {
                    let Spread { median, min, max } = self.ratio(metric, side);
                    println!("  {median:.3} ({min:.3}..{max:.3})");
                }
            }
        }
        for (_, goal) in self.goals.iter().filter(|(of, _)| *of == metric) {
            let (reached, what, bar, stretch) = match goal {
                Goal::Ratio { peer, bar, stretch } => {
                    let peer = self.sides.iter().find(|side| side.name == *peer).expect("the goal names a side");
                    (self.ratio(metric, peer).median, format!("x {}", peer.name), *bar, *stretch)
                }
                Goal::Absolute { bar, stretch } => {
                    let reached = Spread::of(self.sides[0].rounds.iter().map(|round| round[metric]));
                    (reached.median, unit.to_owned(), *bar, *stretch)
                }
            };
            println!("bar <= {bar} {what}: {reached:.3}, {}", verdict(reached, bar, stretch));
        }
    }

    /// The first side against `peer`, round by round.
    fn ratio(&self, metric: usize, peer: &Side) -> Spread {
        Spread::of(self.sides[0].rounds.iter().zip(&peer.rounds).map(|(ours, theirs)| ours[metric] / theirs[metric]))
    }
}

/// "met" or "missed" for the bar, and for the stretch where there is one.
pub fn verdict(reached: f64, bar: f64, stretch: Option<f64>) -> String {
    let word = |goal: f64| if reached <= goal { "met" } else { "missed" };
    match stretch {
        Some(stretch) => format!("{}; stretch {stretch}: {}", word(bar), word(stretch)),
        None => word(bar).to_owned(),
    }
}
