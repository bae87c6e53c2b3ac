"""Analysis of compiled programs: their FLOPs, collectives and schedule, and time on a chip."""
