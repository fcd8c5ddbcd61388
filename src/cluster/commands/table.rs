//! Columns that line up, and figures as people write them.

/// A table with a head. Columns whose cells all start with a number stand on the right.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let is_number = |cell: &str| {
        let first = cell.split(' ').next().unwrap_or_default();
        cell == "-" || !first.is_empty() && first.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    let on_right: [bool; N] =
        std::array::from_fn(|column| !rows.is_empty() && rows.iter().all(|row| is_number(&row[column])));
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let space = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if on_right[column] { (space.as_str(), "") } else { ("", space.as_str()) };
            line.extend([before, cell, after, "  "]);
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(head)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// `3 nodes`, `1 node`, `no nodes`.
pub(super) fn count(count: u64, what: &str) -> String {
    match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut amount = bytes as f64;
    let mut unit = "B";
    for next in units {
        // What would be shown as 1024 is 1 of the next.
        if amount < 1023.95 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    match unit {
        "B" => format!("{bytes} B"),
        unit if amount < 10.0 => format!("{amount:.1} {unit}"),
        unit => format!("{amount:.0} {unit}"),
    }
}

/// A length of time.
pub(super) fn seconds(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match whole {
        0 => format!("{:.0} ms", seconds * 1e3),
        1..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3_600 => format!("{minutes} min {} s", whole % 60),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// At most three digits behind the point, and no zeros at the end.
pub(super) fn amount(amount: f64) -> String {
    let text = format!("{:.3}", amount + 0.0); // a sum of nothing is -0
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The end of a path, which says most.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let length = text.chars().count();
    match length <= most {
        true => text.to_owned(),
        false => format!("..{}", text.chars().skip(length + 2 - most).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "1", "x"], ["längst", "-", "y"], ["b", "200 MiB", ""]].map(|row| row.map(String::from));
        let text = table(["NAME", "SIZE", "NOTE"], &rows);
        let expected = "NAME       SIZE  NOTE\na             1  x\nlängst        -  y\nb       200 MiB";
        assert_eq!(text, expected);
        assert_eq!(table(["A", "B"], &[]), "A  B");
        assert_eq!(
            table(["NODE", "N"], &[["96c9".into(), "7 of 8".into()], ["1f".into(), "8".into()]]),
            "NODE       N\n96c9  7 of 8\n1f         8"
        );
    }

    #[test]
    fn figures_have_units() {
        let sizes = [0, 1023, 1024, 1536, 10 << 10, (1 << 20) - 1, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "1.0 MiB", "5.0 GiB", "16384 PiB"]);
        let times = [0.0, 0.5, 1.25, 59.9, 61.0, 3_700.0, 90_000.0].map(seconds);
        assert_eq!(times, ["0 ms", "500 ms", "1.2 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!([0.0, 2.0, 0.5, 1.0 / 3.0, 10.0].map(amount), ["0", "2", "0.5", "0.333", "10"]);
        assert_eq!([0, 1, 2].map(|n| count(n, "node")), ["no nodes", "1 node", "2 nodes"]);
        assert_eq!([shortened("abcdef", 6), shortened("abcdefg", 6)], ["abcdef", "..defg"]);
    }
}
