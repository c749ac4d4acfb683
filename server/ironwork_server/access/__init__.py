"""Who may do what: identity from certificates, policy, limits, and their reload while serving.

spiffe, identity: a peer's certificate becomes a Principal. policy: Cedar decides. limits: how
much at once. reload: files that change while serving. tls: the listener's credentials.
"""
