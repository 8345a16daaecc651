"""Policy and proposer models behind one small interface."""
