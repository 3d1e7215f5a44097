"""What a worker of Tether can ask and say: `tether.lease`, `tether.job`."""
