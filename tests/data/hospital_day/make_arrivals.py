"""Makes arrivals.csv: 1,500 studies of one day, its peak hour as measured at Guy's and St Thomas'.

225 studies between 10:00 and 11:00: 120 radiographs, 50 ultrasounds, 30 CTs, 25 MRs. The other 1,275 have the same
mix and follow the working day. Which tenant sends what, and how urgent that is, is drawn with a fixed seed.

    python tests/data/hospital_day/make_arrivals.py > tests/data/hospital_day/arrivals.csv
"""

from __future__ import annotations

import random
import sys

SEED = 20240311
STUDIES, PEAK_HOUR = 1500, 10
PEAK = {"XR": 120, "US": 50, "CT": 30, "MR": 25}
# how much of the rest each hour has, relative to the others; the peak hour is given
PROFILE = (12, 10, 9, 8, 9, 14, 30, 65, 105, 150, 0, 150, 110, 95, 120, 125, 105, 75, 55, 45, 35, 28, 22, 16)
PIPELINES = {
    "XR": {"chest-xray": 1},
    "US": {"ultrasound-views": 1},
    "CT": {"multi-ai": 4, "liver-tumor": 3, "covid19": 3},
    "MR": {"brain-tumor": 3, "prostate": 2},
}
TENANTS = {  # by modality: research reads no radiographs, the ward orders few MRs
    "XR": {"EMERGENCY": 40, "RADIOLOGY": 30, "WARD": 30},
    "US": {"EMERGENCY": 25, "RADIOLOGY": 45, "WARD": 30},
    "CT": {"EMERGENCY": 30, "RADIOLOGY": 40, "WARD": 10, "RESEARCH": 20},
    "MR": {"EMERGENCY": 8, "RADIOLOGY": 52, "WARD": 8, "RESEARCH": 32},
}
PRIORITIES = {
    "EMERGENCY": {"immediate": 15, "higher": 85},
    "RADIOLOGY": {"higher": 15, "normal": 85},
    "WARD": {"higher": 5, "normal": 80, "lower": 15},
    "RESEARCH": {"lower": 1},
}


def apportion(total: int, weights: dict[str, float]) -> dict[str, int]:
    """`total` in whole parts as the weights say; what is left goes to the largest remainders."""
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    parts = {name: int(amount) for name, amount in exact.items()}
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[: total - sum(parts.values())]:
        parts[name] += 1
    return parts


def main() -> None:
    """Write the rows to standard output."""
    source = random.Random(SEED)  # noqa: S311  not for secrets
    hours = apportion(STUDIES - sum(PEAK.values()), {str(hour): share for hour, share in enumerate(PROFILE)})
    rows = []
    for hour in range(24):
        mix = PEAK if hour == PEAK_HOUR else apportion(hours[str(hour)], dict(PEAK))
        for modality, count in mix.items():
            for _ in range(count):
                second = hour * 3600 + source.randrange(3600)
                pipeline = pick(source, PIPELINES[modality])
                tenant = pick(source, TENANTS[modality])
                rows.append((second, pipeline, tenant, pick(source, PRIORITIES[tenant])))
    sys.stdout.write("at,pipeline,tenant,priority\n")
    for second, *facts in sorted(rows):
        clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        sys.stdout.write(",".join((clock, *facts)) + "\n")


def pick(source: random.Random, weights: dict[str, int]) -> str:
    """One of the names, by weight."""
    return source.choices(list(weights), list(weights.values()))[0]


if __name__ == "__main__":
    main()
