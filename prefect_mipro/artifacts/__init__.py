"""What a run shows in Prefect: progress, leaderboard, champion and sensors. Rendering is pure."""
