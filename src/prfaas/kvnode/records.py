"""What is remembered of transfers that ended."""

from __future__ import annotations

from collections import OrderedDict

from prfaas.core.wire.node_api import TransferRecord

#: About 300 bytes each; enough for whoever asks a few minutes late.
MAX_RECORDS = 4_096


class RecentRecords:
    """Final records by transfer id, oldest forgotten first."""

    def __init__(self, limit: int = MAX_RECORDS) -> None:
        self._records: OrderedDict[str, TransferRecord] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._records)

    def put(self, transfer_id: str, record: TransferRecord) -> None:
        self._records[transfer_id] = record
        while len(self._records) > self._limit:
            self._records.popitem(last=False)

    def get(self, transfer_id: str) -> TransferRecord | None:
        return self._records.get(transfer_id)
