"""Transports side by side: ours, iperf3, Mooncake's Transfer Engine and NIXL, on loopback and over an emulated WAN."""
