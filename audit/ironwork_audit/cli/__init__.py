"""`ironwork-audit`: the auditor's commands."""
