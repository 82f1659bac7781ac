package receiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/moverd/mover/internal/sentinel"
	"github.com/moverd/mover/mover"
)

// Members are the flows that key names: TENANT/HOST/NAME of a flow or a group, TENANT/HOST for all of a host, or nothing for all.
func (s *Server) Members(key string) ([]string, error) {
	if s.flows[key] != nil {
		return []string{key}, nil
	}
	var out []string
	for _, k := range s.order {
		f := s.flows[k]
		host := f.cfg.Tenant + "/" + f.cfg.Host
		if key == "" || key == host || f.ofGroup(key, host) {
			out = append(out, k)
		}
	}
	if len(out) == 0 && key != "" {
		return nil, fmt.Errorf("%s is neither a flow, nor a group that has recovery points, nor a host (TENANT/HOST) of this gateway: %w", key, sentinel.ErrNotFound)
	}
	return out, nil
}

// ofGroup: f is, or has points, of the group.
func (f *flow) ofGroup(group, host string) bool {
	name, ok := strings.CutPrefix(group, host+"/")
	if !ok || name == "" {
		return false
	}
	r := f.record()
	if r.Group == name {
		return true
	}
	for _, p := range r.Points {
		if p.Group == name {
			return true
		}
	}
	return false
}

// FlowPoints lists the recovery points of each flow that key names (see Members).
func (s *Server) FlowPoints(key string) ([]mover.FlowPoints, error) {
	keys, err := s.Members(key)
	if err != nil {
		return nil, err
	}
	var out []mover.FlowPoints
	for _, k := range keys {
		out = append(out, s.flows[k].flowPoints())
	}
	return out, nil
}

// Moments lists the moments of what key names (see Members), the oldest first. Those of a single flow are the moments of its groups.
func (s *Server) Moments(key string) ([]mover.Moment, error) {
	keys, err := s.Members(key)
	if err != nil {
		return nil, err
	}
	var all []mover.FlowPoints
	for _, k := range s.order {
		all = append(all, s.flows[k].flowPoints())
	}
	out := mover.Moments(all)
	return slices.DeleteFunc(out, func(m mover.Moment) bool {
		if m.Group == key {
			return false
		}
		if s.flows[key] == nil && strings.Count(key, "/") == 2 { // a group: its own only
			return true
		}
		return !slices.ContainsFunc(m.Points, func(p mover.MomentMember) bool { return slices.Contains(keys, p.Flow) })
	}), nil
}

// Moment finds one by its name, or by the beginning of its id, at least 8 digits.
func (s *Server) Moment(key, name string) (mover.Moment, error) {
	all, err := s.Moments(key)
	if err != nil {
		return mover.Moment{}, err
	}
	var found []mover.Moment
	for _, m := range all {
		if m.ID == name || m.Moment == name || len(name) >= 8 && strings.HasPrefix(m.Moment, name) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return mover.Moment{}, fmt.Errorf("%s has no moment %q; moverctl points --moments %s lists them: %w", key, name, key, sentinel.ErrNotFound)
	}
	return mover.Moment{}, fmt.Errorf("%s has %d moments %q (%s, %s, ...); name the group: %w", key, len(found), name, found[0].Group, found[1].Group, sentinel.ErrUsage)
}

// PinMoment is Pin for every point of a moment. An error tells of which ones it was not done.
func (s *Server) PinMoment(ctx context.Context, key, name string, pinned bool) error {
	return s.eachPoint(key, name, func(flow, id string) error { return s.Pin(ctx, flow, id, pinned) })
}

// RemoveMoment is RemovePoint for every point of a moment.
func (s *Server) RemoveMoment(ctx context.Context, key, name string) error {
	return s.eachPoint(key, name, func(flow, id string) error { return s.RemovePoint(ctx, flow, id) })
}

func (s *Server) eachPoint(key, name string, do func(flow, id string) error) error {
	m, err := s.Moment(key, name)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range m.Points {
		if err := do(p.Flow, p.Point.ID); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Flow, err))
		}
	}
	return errors.Join(errs...)
}
