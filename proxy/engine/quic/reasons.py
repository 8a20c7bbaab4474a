"""Why a connection ended: a token for metrics and words for the log, from the codes of RFC 9000, 9001, 9114 and 9204."""

from aioquic.quic.events import ConnectionTerminated

from proxy.engine.h3_frames import CODE_NAMES, NO_ERROR

_TRANSPORT_ERRORS = {
    0x1: "internal_error",
    0x2: "connection_refused",
    0x3: "flow_control_error",
    0x4: "stream_limit_error",
    0x5: "stream_state_error",
    0x6: "final_size_error",
    0x7: "frame_encoding_error",
    0x8: "transport_parameter_error",
    0x9: "connection_id_limit_error",
    0xA: "protocol_violation",
    0xC: "application_error",
    0xD: "crypto_buffer_exceeded",
    0xE: "key_update_error",
    0xF: "aead_limit_reached",
    0x10: "no_viable_path",
    0x11: "version_negotiation_error",
}


def reason(event: ConnectionTerminated) -> tuple[str, str]:
    """A token for metrics, empty for a clean end, and words for the log."""
    code = event.error_code
    words = event.reason_phrase[:100]
    if event.reason_phrase == "Idle timeout":
        return "", "idle"
    if event.frame_type is None:
        if code in (0, NO_ERROR):
            return "", words
        return CODE_NAMES.get(code, "application_error"), f"{code:#x} {words}"
    if 0x100 <= code <= 0x1FF:
        return "tls_alert", f"alert {code - 0x100} {words}"
    return "" if not code else _TRANSPORT_ERRORS.get(code, "transport_error"), f"{code:#x} {words}"
