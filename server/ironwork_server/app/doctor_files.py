"""Doctor: files that the settings name, who may read and write them, and what is in them."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from ironwork_hsm import HsmError
from ironwork_hsm.pin import read_pin
from ironwork_hsm.uri import parse_pkcs11_uri
from ironwork_server.access.errors import AccessConfigurationError
from ironwork_server.access.policy import CedarPolicy
from ironwork_server.access.rules import IdentityRule, compile_rules
from ironwork_server.access.tls import ServerTls
from ironwork_server.app.doctor_report import Finding, fail, ok, warn
from ironwork_server.app.production import check_tls
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError, refuse_shared_place
from ironwork_server.core.values import Action, Principal

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_GROUP_OR_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Certificates are exchanged while serving; less than this and the exchange is late.
MIN_LIFETIME_LEFT = timedelta(days=3)
_MEND_RENEW = "Have a new one issued and put in its place; it is read without a restart."
# What each role of ours is for; any other right of theirs is worth a look.
_MEANT = {
    "key-admin": {Action.ADD_KEY, Action.LIST_MASKED, Action.DELETE_KEY},
    "agent": {Action.WITH_KEY},
    "auditor": {Action.READ_AUDIT},
}


def settings_file(config: Path | None) -> Iterator[Finding]:
    """Whoever writes the settings decides who gets in."""
    if config is None:
        yield ok("settings", "from the environment alone; every name is known")
        return
    yield ok("settings", f"{config}: every name is known, every value usable")
    yield from writable("settings.file", config)


def writable(check: str, path: Path) -> Iterator[Finding]:
    """path and its folder are to be written by their owners alone: root, or us."""
    for place in (path, path.resolve().parent):
        try:
            status = place.stat()
        except OSError as error:
            yield fail(
                check, f"{place}: {os.strerror(error.errno or 0)}", f"Make {place} readable."
            )
            return
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            yield fail(check, f"{place} can be written by group or others", f"chmod go-w {place}")
            return
        if status.st_uid not in (0, os.geteuid()):
            yield fail(
                check,
                f"{place} belongs to user {status.st_uid}, who can change it",
                f"chown it to root, or to the user that serves: {place}",
            )
            return
    yield ok(check, f"{path}: its owner's alone to write")


def pin_sources(settings: Settings) -> list[tuple[str, Path]]:
    """The PIN files that this server reads, by setting. A URI that cannot be read has none."""
    named = [("master_key.uris", uri) for uri in settings.master_key.uris]
    if settings.audit.signing_key is not None:
        named.append(("audit.signing_key", settings.audit.signing_key))
    sources = []
    for name, uri in named:
        if uri.lower().startswith("pkcs11:"):
            try:
                sources.append((name, parse_pkcs11_uri(uri).pin_source))
            except HsmError:
                continue
    return sources


def pins(settings: Settings) -> Iterator[Finding]:
    """Each PIN's file, and its distance to the database (promise 4)."""
    for name, path in pin_sources(settings):
        check = f"pin of {name}"
        try:
            read_pin(path).wipe()
        except HsmError as error:
            yield fail(check, str(error), f"One line, its owner's alone: chmod 600 {path}")
            continue
        yield from writable(check, path)
        yield _apart(path, settings.store.path)


def _apart(pin: Path, database: Path) -> Finding:
    check = "pin apart from database"
    try:
        refuse_shared_place([pin], [database])
    except StartupError as error:
        return fail(check, str(error), "Move the PIN to a folder and mount of its own.")
    homes = pin.resolve().parent, database.resolve().parent
    if all(home.exists() for home in homes) and homes[0].stat().st_dev == homes[1].stat().st_dev:
        return warn(
            check,
            f"{homes[0]} and {homes[1]} are folders of one file system: its backup holds both",
            "Mount the PIN's folder by itself (tmpfs, or a secret's mount), or let ironwork-hsmd"
            " hold the PIN.",
        )
    return ok(check, f"{homes[0]} and {homes[1]} are on different file systems")


def tls(settings: Settings, now: datetime) -> Iterator[Finding]:
    """The listener's certificate, key and client CAs, as a start would read them."""
    files = settings.tls
    try:
        loaded = ServerTls.load(files.certificate, files.private_key, files.client_ca, now=now)
    except AccessConfigurationError as error:
        yield fail("tls", str(error), "Mend the file that is named; `serve` would not start.")
        return
    yield ok("tls", "certificate, key and client CAs fit together")
    try:
        check_tls(loaded)
    except AccessConfigurationError as error:
        yield fail("tls.dev", str(error), "Use certificates of your own CA.")
    chain = x509.load_pem_x509_certificates(loaded.certificate_chain)
    yield _lifetime("tls.certificate", chain[0], now)
    for authority in x509.load_pem_x509_certificates(loaded.client_ca):
        yield _lifetime("tls.client_ca", authority, now)
    yield _names(chain[0], settings.identity.trust_domain)
    for name, path in (("tls.certificate", files.certificate), ("tls.client_ca", files.client_ca)):
        yield from writable(f"{name} file", path)


def _lifetime(check: str, certificate: x509.Certificate, now: datetime) -> Finding:
    ends = certificate.not_valid_after_utc
    if ends - now < min(MIN_LIFETIME_LEFT, (ends - certificate.not_valid_before_utc) / 4):
        return warn(check, f"ends {ends:%Y-%m-%d %H:%M} UTC", _MEND_RENEW)
    return ok(check, f"valid until {ends:%Y-%m-%d %H:%M} UTC")


def _names(leaf: x509.Certificate, trust_domain: str) -> Finding:
    """What clients can know the server by: DNS names, addresses, or one SPIFFE ID of ours."""
    check = "tls.certificate names"
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    uris = list(names.get_values_for_type(x509.UniformResourceIdentifier))
    foreign = [uri for uri in uris if not uri.startswith(f"spiffe://{trust_domain}/")]
    if foreign or len(uris) > 1:
        return fail(
            check,
            f"the server's certificate has a URI outside spiffe://{trust_domain}/, or several",
            "Have it issued with one SPIFFE ID of identity.trust_domain, or with none.",
        )
    if not names.get_values_for_type(x509.DNSName) and not names.get_values_for_type(
        x509.IPAddress
    ):
        return fail(
            check,
            "the server's certificate has no DNS name and no IP address: no client takes it",
            "Have it issued with the DNS name that clients connect to.",
        )
    return ok(check, "a name that clients can verify" + (", and a SPIFFE ID" if uris else ""))


def policy(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Whether the policies load, and what each role may do by them."""
    rules = [IdentityRule(rule.path, rule.role) for rule in settings.identity.rules]
    try:
        compile_rules(rules)
    except AccessConfigurationError as error:
        yield fail("identity.rules", str(error), "Mend the rule that is named.")
        return
    yield ok("identity.rules", f"{len(rules)} rules, of which no path fits two")
    try:
        loaded = CedarPolicy.load(settings.policy.folder)
    except AccessConfigurationError as error:
        yield fail("policy", str(error), "Mend it; `ironwork-server policy init` writes defaults.")
        return
    yield ok("policy", f"loads; version {loaded.version}")
    yield from writable("policy.folder", settings.policy.folder)
    for file in sorted(settings.policy.folder.glob("*.cedar")):
        if file.stat().st_mode & _OTHERS_WRITE:
            yield fail("policy.folder", f"{file}: others can write it", f"chmod go-w {file}")
    for rule in rules:
        yield _rights(loaded, rule, settings.identity.trust_domain, now)


def _rights(policy: CedarPolicy, rule: IdentityRule, domain: str, now: datetime) -> Finding:
    """By asking for somebody who fits the rule; a policy may say more of particular principals."""
    check = f"role {rule.role}"
    bound = "{workspace}" in rule.path
    path = "/".join("example" if part.startswith("{") else part for part in rule.path.split("/"))
    someone = Principal(f"spiffe://{domain}{path}", rule.role, "example" if bound else None, now)
    own = {action for action in Action if _may(policy, someone, action, "example")}
    other = {action for action in Action if _may(policy, someone, action, "another")}
    if Action.READ_AUDIT in own:
        other.discard(Action.READ_AUDIT)
    says = ", ".join(action.value for action in Action if action in own) or "nothing"
    crossing = other if bound else (own | other) - {Action.READ_AUDIT}
    if crossing:
        return fail(
            check,
            f"may act on workspaces that are not its own: {', '.join(a.value for a in crossing)}",
            "Bind the policy's resource to principal.workspace.",
        )
    if not own:
        return warn(check, "may do nothing", "Write a policy for it, or take out its rule.")
    beyond = own - _MEANT.get(rule.role, own)
    if beyond:
        return warn(
            check,
            f"may {says}: more than this role is for",
            "Take it out of the policy, or give whoever needs it a role of its own.",
        )
    return ok(check, f"may {says}")


def _may(policy: CedarPolicy, who: Principal, action: Action, workspace: str) -> bool:
    return policy.permits(who, action, None if action is Action.READ_AUDIT else workspace)


def other_secrets(settings: Settings) -> Iterator[Finding]:
    """The private key and the proxy's credentials: their owner's alone."""
    files = [("tls.private_key", settings.tls.private_key)]
    if settings.upstream.proxy_credentials is not None:
        files.append(("upstream.proxy_credentials", settings.upstream.proxy_credentials))
    for check, path in files:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            yield fail(check, f"{path}: {os.strerror(error.errno or 0)}", f"Make {path} readable.")
            continue
        if mode & _GROUP_OR_OTHERS:
            yield fail(check, f"{path} is open to group or others", f"chmod 600 {path}")
        else:
            yield from writable(check, path)


def now_utc() -> datetime:
    return datetime.now(UTC)
