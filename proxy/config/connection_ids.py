"""The forms of connection IDs that a configuration asks for, under the keys that there are."""

from dataclasses import dataclass

from proxy.config.load import Configuration
from proxy.engine.quic.ids import Routable
from proxy.keys import Keyring, KeySet, config_id


@dataclass(frozen=True, slots=True)
class Forms:
    """All that connection IDs of this server may look like."""

    present: Routable | None
    """In which they are issued; None: opaque."""
    others: tuple[Routable, ...] = ()
    """Of keys that sealed before, and will seal: clients have such IDs still, and balancers know them already."""

    @property
    def routable(self) -> tuple[Routable, ...]:
        """Those that name this server, the present one first."""
        return self.others if self.present is None else (self.present, *self.others)


def connection_id_forms(configuration: Configuration, keys: Keyring, now: float) -> Forms:
    """Those at the time *now*, in seconds since 1970. *keys* are those that go with *configuration*.

    With keys of a cluster there is one form for each epoch, told apart by its configuration ID.
    """
    ids, server_id = configuration.server.quic.connection_ids, configuration.server_id
    if ids is None or server_id is None:
        return Forms(None)
    if not keys.keys.shared or ids.in_clear:
        return Forms(Routable(ids.layout(len(server_id)), server_id))

    def form(epoch: int) -> Routable:
        return Routable(ids.layout(len(server_id), config_id(epoch), keys.cid_key(epoch)), server_id, epoch)

    sealing = keys.sealing(now)
    return Forms(form(sealing), tuple(form(key.epoch) for key in keys.keys.keys if key.epoch != sealing))


def keys_of(configuration: Configuration, secret: bytes) -> KeySet:
    """The keys of the cluster; without one, the *secret* of the state folder."""
    return configuration.keys or KeySet.alone(secret)
