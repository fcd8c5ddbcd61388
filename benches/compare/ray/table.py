"""Puts the rows of both sides beside each other, and how many times better outray is."""

import sys

LESS_IS_BETTER = {"us", "ms", "MiB"}


def rows(path):
    found = {}
    with open(path) as lines:
        for line in lines:
            words = line.split(maxsplit=3)
            try:
                found[words[0]] = (float(words[1]), words[2], words[3].strip())
            except (IndexError, ValueError):
                pass  # not a row
    return found


def shown(row):
    if row is None:
        return "-"
    value, unit, _ = row
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def main():
    is_markdown = "--markdown" in sys.argv
    paths = [word for word in sys.argv[1:] if not word.startswith("--")]
    ours, theirs = (rows(path) for path in paths)
    table = [("row", "outray", "Ray", "better by", "what")]
    for name in dict.fromkeys([*ours, *theirs]):
        our, their = ours.get(name), theirs.get(name)
        ratio = "-"
        if our and their and our[1] == their[1]:
            better = their[0] / our[0] if our[1] in LESS_IS_BETTER else our[0] / their[0]
            ratio = f"{better:,.{2 if better < 10 else 0}f} x"
        notes = list(dict.fromkeys(row[2] for row in (our, their) if row))
        table.append((name, shown(our), shown(their), ratio, "; Ray: ".join(notes)))
    if is_markdown:
        table.insert(1, ("---",) * 5)
        for row in table:
            print(f"| {' | '.join(row)} |")
        return
    widths = [max(len(row[at]) for row in table) for at in range(4)]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [row[at].rjust(widths[at]) for at in range(1, 4)]
        print("  ".join(cells + [row[4]]))


if __name__ == "__main__":
    main()
