package jobs

// moved is told of every move of a job, in the order in which they became true: enqueued (from ""), due, started, completed, failed, delayed,
// waiting again; j.State says where it is now. Only its progress changed: from is Active and so is j.State. Starts of the box's own
// workers are told when they begin, all else when it is on disk. Engine.mu is held; j must not be kept or changed.
func (e *Engine) moved(j *Job, from State) {}

// ratesOf measures a tenant's jobs of a queue (tenant "": everybody's). Engine.mu is held.
func (e *Engine) ratesOf(tenant, queue string) QueueRates { return QueueRates{} }
