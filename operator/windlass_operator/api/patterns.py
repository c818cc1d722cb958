"""Every pattern of the API with the words that say it, so that an error shows words and the schema shows the pattern.

Patterns stay within what RE2 can run: no look-around, no back-references.
"""

from __future__ import annotations

from typing import Final

_POSITIVE: Final = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"

DNS_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_LABEL_OR_EMPTY: Final = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$"
QUANTITY: Final = rf"^{_POSITIVE}(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
BYTES: Final = rf"^{_POSITIVE}(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
CONDITION_STATUS: Final = r"^(True|False|Unknown)$"
MODEL_URI: Final = r"^(hf|pvc|oci|file)://[^\s]+$"
CLAIM_PATH: Final = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/\s]+)+$"
SERVED_NAME: Final = r"^[A-Za-z0-9._:/-]*$"
ENV_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
COMPUTE_CAPABILITY: Final = r"^[0-9]{1,2}\.[0-9]$"
RESOURCE_NAME: Final = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
DEVICE_CLASS: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
MIG_PROFILE: Final = r"^[1-9]g\.[1-9][0-9]{0,2}gb([+.][a-z]+(\.[a-z]+)*)?$"
PERCENT: Final = r"^[0-9]{1,2}(\.[0-9]{1,4})?$"
PRICE: Final = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
TIME_ZONE: Final = r"^[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*){0,2}$"
TIME_OF_DAY: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"
SHA256: Final = r"^[0-9a-f]{64}$"

WORDS: Final = {
    DNS_LABEL: "lower-case letters, digits and dashes, beginning and ending with a letter or digit",
    DNS_LABEL_OR_EMPTY: "nothing, or lower-case letters, digits and dashes, with a letter or digit at both ends",
    QUANTITY: 'a positive quantity such as "4", "500m" or "16Gi"',
    BYTES: 'a positive size such as "8Gi" or "500M"',
    LABEL_KEY: "a label key: letters, digits, '-', '_' and '.', with an optional DNS prefix and '/'",
    LABEL_VALUE: "a label value: letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
    CONDITION_STATUS: "True, False or Unknown",
    MODEL_URI: "hf://, pvc://, oci:// or file:// and no white space",
    CLAIM_PATH: "pvc://claim/path without white space",
    SERVED_NAME: "letters, digits, '.', '_', ':', '/' and '-'",
    ENV_NAME: "letters, digits and '_', not beginning with a digit",
    COMPUTE_CAPABILITY: 'a compute capability such as "9.0"',
    RESOURCE_NAME: "an extended resource such as nvidia.com/gpu",
    DEVICE_CLASS: "a DNS name such as gpu.nvidia.com",
    MIG_PROFILE: 'a MIG profile such as "1g.18gb" or "1g.10gb+me"',
    PERCENT: 'a percentage below 100 such as "0.8"',
    PRICE: 'a price such as "2.85"',
    TIME_ZONE: "a time zone of the IANA database such as Europe/Berlin",
    TIME_OF_DAY: 'a time of day such as "08:00", in quotes',
    SHA256: "64 lower-case hex digits",
}
"""Words that complete "expected ..."."""
