package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"tenderbox/ledger"
	"tenderbox/store"
)

// boxMetrics tells what the box's bbolt files cost and what the event stream was given; all other metrics are the web server's own.
func boxMetrics(files map[string]*store.Store, l *ledger.Ledger) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "tenderbox_events_published_total",
		Help: "Events handed to the event stream since the start, those that it is filled with again included."}, func() float64 { return float64(l.Published()) }))
	for name, st := range files {
		labels := prometheus.Labels{"file": name}
		registry.MustRegister(
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "tenderbox_store_commits_total", ConstLabels: labels,
				Help: "Groups committed to the file; each costs two fsyncs."}, func() float64 { return float64(st.Stats().Commits) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "tenderbox_store_operations_total", ConstLabels: labels,
				Help: "Operations in those groups."}, func() float64 { return float64(st.Stats().Operations) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "tenderbox_store_rescues_total", ConstLabels: labels,
				Help: "Times that a failed fsync was healed by a fresh copy."}, func() float64 { return float64(st.Stats().Rescues) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "tenderbox_store_bytes", ConstLabels: labels,
				Help: "Size of the file's contents."}, func() float64 { return float64(st.Stats().Bytes) }),
		)
	}
	return registry
}
