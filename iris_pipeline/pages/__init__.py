"""Pages and pictures for people: report, viewer, advice, map of tasks."""
