package coherence

// PollQuery is the text that [PostgresLog.Poll] prepares.
const PollQuery = pollQuery
