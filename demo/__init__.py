"""`make demo`: the main job, played on a throw-away server."""
