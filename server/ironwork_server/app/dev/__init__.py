"""`ironwork-server dev`: everything embedded under one state folder, and marked so that `serve`
refuses it.
"""
