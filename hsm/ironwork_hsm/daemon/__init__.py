"""The HSM process, `ironwork-hsmd`: alone holds the PIN, and records every use (ADR 0019).

main       commands; serve.py builds everything
session    a client's connection          operations   rate, record, device, record
device     a child process and its life   child        that process: one backend
record     the durable record             latch        remembers a refused PIN
"""
